"""The log is for a person: whatever a guest does, and however often."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest

from nvmeemu.app.logs import MOST, WINDOW, NoFlood
from server.process import Serve


class Told:
    """What comes through the filter, at a time of ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("nvmeemu.app.logs.time.monotonic", lambda: self.now)
        self.filter = NoFlood()

    def tell(self, message: str, *values: object, level: int = logging.WARNING) -> str | None:
        record = logging.LogRecord("test", level, "", 0, message, values, None)
        return record.getMessage() if self.filter.filter(record) else None


def test_a_line_is_dated_and_its_time_is_utc(serve: Serve) -> None:
    served = serve("--disk", "mem:1M", environment={"TZ": "Asia/Tokyo"})
    assert served.stop() == 0
    for line in served.log.splitlines():
        time, level, _ = line.split(maxsplit=3)[0:2], *line.split(maxsplit=3)[2:4]
        told = datetime.strptime(" ".join(time), "%Y-%m-%d %H:%M:%SZ").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - told).total_seconds()) < 3600
        assert level == "INFO"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING, logging.ERROR])
def test_a_message_is_told_a_few_times_in_a_while(told: Told, level: int) -> None:
    texts = [told.tell("bad value %d", value, level=level) for value in range(100)]
    assert [text for text in texts if text] == [f"bad value {value}" for value in range(MOST)]


def test_the_next_one_says_how_many_were_left_out_and_the_count_begins_anew(told: Told) -> None:
    for period in range(4):
        told.now = period * (WINDOW + 1)
        texts = [text for value in range(20) if (text := told.tell("bad value %d", value))]
        more = f" (and {20 - MOST} more like it)" if period else ""
        assert texts == [f"bad value 0{more}", *(f"bad value {value}" for value in range(1, MOST))]


def test_a_guest_that_always_writes_something_else_fills_no_memory(told: Told) -> None:
    for value in range(1000):
        told.now += WINDOW / 3
        told.tell("bad value %d", value)
    assert len(told.filter._seen) == 1


def test_what_was_told_seldom_is_told_as_it_is(told: Told) -> None:
    for _ in range(20):
        told.now += WINDOW
        assert told.tell("rare") == "rare"


def test_messages_do_not_silence_each_other_and_debug_is_whole(told: Told) -> None:
    for _ in range(50):
        told.tell("often")
        assert told.tell("each command", level=logging.DEBUG)
    assert told.tell("something else")
