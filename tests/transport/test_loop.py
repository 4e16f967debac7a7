"""The event loop: timers, work on threads, descriptors, and the order among them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nvmeemu.vfio.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with Loop(threads=2) as loop:
        yield loop


@pytest.mark.kills("a-cancelled-timer-fires")
def test_timers_fire_in_order_and_not_when_cancelled(loop: Loop) -> None:
    fired: list[str] = []
    loop.call_later(0.02, lambda: fired.append("late"))
    loop.call_later(0, lambda: fired.append("first"))
    loop.call_later(0, lambda: fired.append("second"))
    loop.call_later(0.01, lambda: fired.append("never")).cancel()
    loop.call_later(0.03, loop.request_stop)
    loop.run()
    assert fired == ["first", "second", "late"]


@pytest.mark.kills("timers-due-at-once-lose-their-order")
def test_timers_of_one_moment_fire_in_the_order_in_which_they_were_asked_for(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that a fault delays by the same time keep their order; a clock has its steps."""
    moment = loop.now()
    monkeypatch.setattr(loop, "now", lambda: moment)
    fired: list[int] = []
    for number in range(20):
        loop.call_later(0, lambda number=number: fired.append(number))  # type: ignore[misc]
    loop.call_later(0, loop.request_stop)
    loop.run()
    assert fired == list(range(20))


@pytest.mark.kills("timers-of-whole-milliseconds")
def test_a_timer_of_microseconds_takes_no_millisecond(loop: Loop) -> None:
    """The quickest counts: a wait counted in milliseconds is never shorter."""
    delays: list[float] = []

    def start() -> None:
        began = loop.now()
        loop.call_later(0.0002, lambda: end(began))

    def end(began: float) -> None:
        delays.append(loop.now() - began)
        if len(delays) >= 200 and (min(delays) < 0.001 or len(delays) >= 5000):  # a busy machine delays many of them
            loop.request_stop()
        else:
            start()

    start()
    loop.run()
    assert 0.0002 <= min(delays) < 0.001


def test_a_cancelled_timer_does_not_hide_a_later_one_nor_an_earlier_one_a_new_one(loop: Loop) -> None:
    fired: list[str] = []

    def change() -> None:
        first.cancel()
        loop.call_later(0.001, lambda: fired.append("earlier"))

    first = loop.call_later(0.002, lambda: fired.append("never"))
    loop.call_later(0.003, lambda: fired.append("later"))
    loop.call_later(0, change)
    loop.call_later(0.004, loop.request_stop)
    loop.run()
    assert fired == ["earlier", "later"]


@pytest.mark.kills("a-loop-looks-now-and-then")
def test_a_loop_without_timers_sleeps(loop: Loop) -> None:
    """Also after one that has gone off, and one that was cancelled."""
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    loop.call_later(0.001, lambda: None)
    loop.call_later(0.002, lambda: None).cancel()
    threading.Timer(0.3, loop.request_stop).start()
    loop.add_step(step)
    loop.run()
    assert steps <= 6


def test_step_runs_again_as_long_as_it_has_more_but_descriptors_have_their_turn(loop: Loop) -> None:
    read, write = os.pipe()
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.write(write, b"x")
        return True

    def readable() -> None:
        loop.unwatch(read)
        assert steps == 3
        loop.request_stop()

    loop.watch(read, readable)
    loop.add_step(step)
    loop.run()
    os.close(read)
    os.close(write)


@pytest.mark.kills("a-rest-outlives-its-watch")
def test_what_rests_can_be_given_up_and_watched_anew(loop: Loop) -> None:
    """Its number may be another file's when the rest is over."""
    read, write = os.pipe()
    os.write(write, b"x")
    called: list[str] = []
    loop.watch(read, lambda: called.append("old"))
    loop.rest(read, 0.001)
    loop.unwatch(read)
    os.close(read)
    other, other_write = os.pipe()
    assert other == read
    os.write(other_write, b"x")
    loop.watch(other, lambda: called.append("new"))
    loop.rest(other, 3600)

    def end_soon() -> None:  # it looks at descriptors in between
        loop.call_later(0.001, loop.request_stop)

    loop.call_later(0.003, end_soon)
    loop.run()
    assert not called
    for fd in (write, other, other_write):
        os.close(fd)


def test_who_rests_is_called_again(loop: Loop) -> None:
    """Also if it was to rest twice."""
    read, write = os.pipe()
    os.write(write, b"x")
    called = 0

    def readable() -> None:
        nonlocal called
        called += 1
        if called == 3:
            loop.request_stop()
        loop.rest(read, 0.001)
        loop.rest(read, 0.002)

    loop.watch(read, readable)
    loop.run()
    os.close(read)
    os.close(write)


@pytest.mark.kills("only-the-last-one-has-more", "who-has-more-keeps-the-others-waiting")
def test_each_step_has_its_turn_until_it_is_removed(loop: Loop) -> None:
    turns: list[str] = []

    def step(name: str) -> Callable[[], bool]:
        def run() -> bool:
            turns.append(name)
            if len(turns) == 6:
                loop.remove_step(steps["b"])
            if len(turns) == 10:
                loop.request_stop()
            return name == "a"

        return run

    steps = {name: step(name) for name in "abc"}
    for one in steps.values():
        loop.add_step(one)
    assert loop.step_count == 3
    loop.call_later(10, loop.request_stop)  # if it sleeps although there is more
    loop.run()
    assert "".join(turns) == "abcabcacac"
    loop.remove_step(steps["b"])
    assert loop.step_count == 2


def test_work_runs_elsewhere_and_is_reported_here(loop: Loop) -> None:
    here, seen = threading.get_ident(), []

    def done(value: Any, error: BaseException | None) -> None:
        assert threading.get_ident() == here
        seen.append((value, error))
        if len(seen) == 2:
            loop.request_stop()

    failure = ValueError("of the work")

    def fail() -> None:
        raise failure

    loop.submit(threading.get_ident, done, "a disk")
    loop.submit(fail, done, "a disk")
    assert not seen
    loop.run()
    values = [value for value, error in seen if error is None]
    assert len(values) == 1
    assert values[0] != here
    assert [error for _, error in seen if error] == [failure]


@pytest.mark.kills("work-that-has-begun-is-cancelled")
def test_work_that_has_not_begun_can_be_cancelled(loop: Loop) -> None:
    gate, running = threading.Event(), threading.Barrier(3)
    finished: list[str] = []

    def note(name: str) -> Callable[[Any, BaseException | None], None]:
        def done(value: Any, error: BaseException | None) -> None:
            finished.append(name)
            if len(finished) == 3:
                loop.request_stop()

        return done

    def block() -> None:
        running.wait()
        gate.wait()

    jobs = [loop.submit(block, note("blocker"), "a disk") for _ in range(2)]
    running.wait()
    third = loop.submit(lambda: None, note("cancelled"), "a disk")
    last = loop.submit(lambda: None, note("last"), "a disk")
    assert third.cancel()
    assert third.cancel()
    assert not jobs[0].cancel()
    gate.set()
    loop.run()
    assert not last.cancel()
    assert sorted(finished) == ["blocker", "blocker", "last"]


def test_work_that_waits_at_one_place_holds_up_none_at_another(loop: Loop) -> None:
    """Two threads for each; what is cancelled leaves its place in the line."""
    gate = threading.Event()
    finished: list[str] = []
    waiting: list[Any] = []

    def note(name: str) -> Callable[[Any, BaseException | None], None]:
        def done(value: Any, error: BaseException | None) -> None:
            finished.append(name)
            if finished.count("elsewhere") == 20 and not gate.is_set():
                assert finished == ["elsewhere"] * 20
                waiting[:] = [job for job in waiting if not job.cancel()]
                loop.submit(loop.request_stop, note("last"), "stalled")
                gate.set()

        return done

    waiting += [loop.submit(gate.wait, note("stalled"), "stalled") for _ in range(50)]
    for _ in range(10):
        loop.submit(lambda: None, note("elsewhere"), "other")
        loop.submit(lambda: None, note("elsewhere"), "a third")
    loop.run()
    assert len(waiting) == 2
    assert "stalled" in finished


def test_a_stop_may_come_from_a_signal_handler_or_from_another_thread(loop: Loop) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: loop.request_stop())
    try:
        loop.call_later(0, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)
    with Loop() as other:
        other.call_later(0, threading.Thread(target=other.request_stop).start)
        other.run()


def test_an_exception_ends_run_and_leaves_the_process_as_it_was(loop: Loop) -> None:
    def fail() -> None:
        raise RuntimeError("a callback")

    loop.call_later(0, fail)
    with pytest.raises(RuntimeError, match="a callback"):
        loop.run()
    assert signal.set_wakeup_fd(-1) == -1


def test_it_goes_on_after_a_stop_until_something_is_so() -> None:
    """What ends a server waits for answers that the loop brings: of timers, descriptors and threads."""
    with Loop() as loop:
        loop.request_stop()
        loop.run()  # at once
        told: list[object] = []
        loop.submit(lambda: "done", lambda result, error: told.append(result), None)
        loop.call_later(0.01, lambda: told.append("timer"))
        loop.run_until(lambda: len(told) == 2)
        assert set(told) == {"done", "timer"}
