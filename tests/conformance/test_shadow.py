"""Shadow doorbells: no wake-up is lost, whatever the order of the two sides' accesses. Base 1.4, 5.7 and B.5.

``Host`` follows the specification's rules for a host. ``RacingRam`` gives it a chance to act before each access of the
controller to the two buffers, at each barrier and after each run; what the controller has stored into EventIdx is seen
by the host only after the controller's next barrier (or run), as with a processor's store buffer. The native engine's
accesses cannot be waited for: the host acts while its thread runs, and the processor makes the order.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from conformance.tools import NewBench, aer, fails, flush_command, identify_controller, read_command
from nvmeemu.spec import (
    CQE_SIZE,
    DOORBELLS,
    SQE_SIZE,
    AdminOpcode,
    Command,
    CommandEffectsLog,
    Completion,
    DoorbellBufferConfig,
    LogId,
    Status,
)
from nvmeemu.testing import PAGE, Bench, Driver, QueuePair, Ram
from nvmeemu.vfio.binding import barrier

CLAUSE = "Base 1.4, 5.7 and B.5"
OACS = 1 << 8


def configure(shadow: int, event: int) -> Command:
    return DoorbellBufferConfig(opcode=AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event)


def set_buffers(driver: Driver) -> tuple[int, int]:
    shadow, event = driver.alloc(PAGE), driver.alloc(PAGE)
    driver.succeed(driver.admin, configure(shadow, event))
    return shadow, event


def word(driver: Driver, place: int) -> int:
    return int.from_bytes(driver.bus.read_memory(place, 4), "little")


def set_word(driver: Driver, place: int, value: int) -> None:
    driver.bus.write_memory(place, value.to_bytes(4, "little"))


def announce(driver: Driver, pair: QueuePair, shadow: int, command: Command) -> None:
    """Submit it, and put the new tail into the shadow doorbell only."""
    driver.submit(pair, command, ring=False)
    set_word(driver, shadow + 8 * pair.qid, pair.sq_tail)


def consume(driver: Driver, pair: QueuePair, shadow: int) -> None:
    """Take a completion, which must be there, and put the new head into the shadow doorbell only."""
    assert driver.poll(pair, ring=False) is not None
    set_word(driver, shadow + 8 * pair.qid + 4, pair.cq_head)


def needs_doorbell(event: int, new: int, old: int) -> bool:
    """Whether ``event`` was passed on the way from ``old`` to ``new``, in 16 bits."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


# --- the deterministic ones


@pytest.mark.fact("A33", clause=CLAUSE, kills=("buffers-anywhere",))
def test_the_buffers_begin_at_pages(driver: Driver) -> None:
    if not identify_controller(driver).oacs & OACS:
        pytest.skip("no Doorbell Buffer Config")
    place = driver.alloc(4 * PAGE)
    for shadow, event in ((place + 64, place + PAGE), (place, place + PAGE + 64), (place + 4, place + PAGE + 4)):
        fails(driver, driver.admin, configure(shadow, event), Status.INVALID_FIELD)
    driver.succeed(driver.create_queues(1), flush_command())


@pytest.mark.fact("A31", clause="vfio: INTx ends at an access of BAR0", kills=("buffers-with-the-pin",))
@pytest.mark.parametrize("way", ["MSI-X", "the pin", "polling"])
def test_the_buffers_are_not_for_hosts_with_the_interrupt_pin(bench: Bench, way: str) -> None:
    """With them they would consume without an access of BAR0, and QEMU's line would stay up: "irq N: nobody cared"."""
    driver = bench.driver
    bench.ram.msix_enabled = way == "MSI-X"
    bench.ram.pin_disabled = way == "polling"  # Interrupt Disable: SPDK
    driver.enable()
    is_there = way != "the pin"
    effects = CommandEffectsLog(driver.get_log(LogId.COMMAND_EFFECTS, CommandEffectsLog.SIZE))
    assert bool(identify_controller(driver).oacs & OACS) == is_there
    assert effects.admin[AdminOpcode.DOORBELL_BUFFER_CONFIG].csupp == is_there
    if is_there:
        set_buffers(driver)
    else:
        buffers = driver.alloc(PAGE), driver.alloc(PAGE)
        fails(driver, driver.admin, configure(*buffers), Status.INVALID_OPCODE)


@pytest.mark.fact("A33", clause=CLAUSE, kills=("one-buffer-for-both",))
def test_the_two_buffers_are_two(driver: Driver) -> None:
    place = driver.alloc(PAGE)
    fails(driver, driver.admin, configure(place, place), Status.INVALID_FIELD)


@pytest.mark.fact("A33", clause=CLAUSE, kills=("event-index-never-written",))
@pytest.mark.parametrize("engine", ["python", "native"], indirect=True)  # mapped doorbells do not let it sleep
@pytest.mark.parametrize("is_older", [False, True], ids=["newer", "older"])
def test_a_sleeping_queue_asks_for_its_next_doorbell(driver: Driver, is_older: bool) -> None:
    """Be it older or newer than the buffers."""
    if is_older:
        driver.succeed(driver.create_queues(1, 8), flush_command())
    shadow, event = set_buffers(driver)
    pair = driver.queues[1] if is_older else driver.create_queues(1, 8)
    for _ in range(20):
        old = word(driver, shadow + 8)
        announce(driver, pair, shadow, flush_command())
        assert needs_doorbell(word(driver, event + 8), pair.sq_tail, old)
        driver.ring_sq(pair)
        consume(driver, pair, shadow)
        assert word(driver, event + 8) == pair.sq_tail


@pytest.mark.fact("A33", clause=CLAUSE, kills=("busy-queue-ignores-shadow",))
def test_a_queue_takes_what_its_shadow_has_beyond_the_doorbell(driver: Driver) -> None:
    """One real doorbell for ten commands; its value is an old one."""
    shadow, _ = set_buffers(driver)
    pair = driver.create_queues(1, 16)
    for _ in range(10):
        announce(driver, pair, shadow, flush_command())
    driver.set_reg(DOORBELLS + 8, 1)
    assert sum(driver.poll(pair, ring=False) is not None for _ in range(10)) == 10


@pytest.mark.fact("A33", clause=CLAUSE, kills=("admin-queue-follows-its-shadow",))
def test_the_admin_queue_stays_with_its_real_doorbells(driver: Driver) -> None:
    """Linux and SPDK never write its shadows; a host that does is asked for every doorbell."""
    if not identify_controller(driver).oacs & OACS:
        pytest.skip("no Doorbell Buffer Config")
    shadow, event = set_buffers(driver)
    for _ in range(3 * driver.admin.sq_entries):
        old = driver.admin.sq_tail
        assert needs_doorbell(word(driver, event), (old + 1) % driver.admin.sq_entries, old)
        driver.identify(1)
    assert word(driver, shadow) in (0, driver.admin.sq_tail)


@pytest.mark.fact("A33", clause=CLAUSE, kills=("buffers-survive-reset",))
@pytest.mark.fact("A9", clause=CLAUSE, kills=("buffers-survive-reset",))
@pytest.mark.fact("B8", clause=CLAUSE, kills=("buffers-survive-reset",))
def test_the_buffers_are_forgotten_at_a_reset(driver: Driver) -> None:
    """OpenVMM went on to write into them: the next boot's memory was corrupted (#4080, #4158)."""
    if not identify_controller(driver).oacs & OACS:
        pytest.skip("no Doorbell Buffer Config")
    buffers = set_buffers(driver)
    driver.identify(1)
    driver.enable()
    for place in buffers:
        driver.bus.write_memory(place, b"\xee" * PAGE)
    pair = driver.create_queues(1, 4)
    for _ in range(9):
        driver.succeed(pair, flush_command())
    for place in buffers:
        assert driver.bus.read_memory(place, PAGE) == b"\xee" * PAGE


@pytest.mark.fact("A4", clause=CLAUSE, kills=("values-checked-with-shadows",))
@pytest.mark.fact("A33", clause=CLAUSE, kills=("values-checked-with-shadows",))
@pytest.mark.parametrize(
    "values",
    [pytest.param((0, 0, 3, 1, 1), id="stale"), pytest.param((4, 0xFFFF), id="beyond")],
)
def test_with_shadow_doorbells_no_real_value_is_wrong(driver: Driver, values: tuple[int, ...]) -> None:
    """After a whole round through the shadow, a correct host may write the value that it wrote before."""
    shadow, _ = set_buffers(driver)
    pair = driver.create_queues(1, 4)
    driver.submit(driver.admin, aer())
    for value in values:
        announce(driver, pair, shadow, flush_command())
        driver.set_reg(DOORBELLS + 8, value)
        consume(driver, pair, shadow)
        driver.set_reg(DOORBELLS + 12, value)
    assert driver.drain(driver.admin) == []


@pytest.mark.fact("A33", clause=CLAUSE, kills=("any-shadow-tail",))
def test_a_shadow_value_beyond_the_queue_is_not_followed(driver: Driver) -> None:
    shadow, _ = set_buffers(driver)
    pair = driver.create_queues(1, 4)
    for value in (4, 0xFFFF, 0xFFFFFFFF):
        set_word(driver, shadow + 8, value)
        driver.set_reg(DOORBELLS + 8, 1)
        set_word(driver, shadow + 12, value)
        driver.set_reg(DOORBELLS + 12, 1)
        assert driver.poll(pair) is None
    set_word(driver, shadow + 12, 0)
    driver.submit(pair, flush_command(), ring=False)
    set_word(driver, shadow + 8, 1)
    driver.ring_sq(pair)
    assert driver.poll(pair, ring=False) is not None


@pytest.mark.parametrize("engine", ["python"], indirect=True)  # the engine's barrier is no call that we could hear
@pytest.mark.fact("B8", clause=CLAUSE, kills=("no-second-look",))
def test_a_tail_that_moves_just_before_the_question_is_seen(bench: Bench) -> None:
    """The host moves its tail after the controller has looked and before it can see what EventIdx asks for: it rings
    nothing. Propolis lost such wake-ups (#1008)."""
    driver = bench.driver
    driver.enable()
    shadow, event = set_buffers(driver)
    pair = driver.create_queues(1, 8)
    set_word(driver, event + 8, 5)  # a question of long ago, not passed by what comes
    announce(driver, pair, shadow, flush_command())

    def act() -> None:
        bench.ram.on_barrier = None
        announce(driver, pair, shadow, flush_command())

    bench.ram.on_barrier = act
    driver.ring_sq(pair)
    assert driver.poll(pair, ring=False) is not None
    assert driver.poll(pair, ring=False) is not None


# --- the stress test


class RacingRam(Ram):
    """Memory in which the host may do something just before each access of the controller to ``buffers``."""

    def __init__(self) -> None:
        self.act: Callable[[], None] | None = None
        self.buffers = range(0)
        self.event = 0
        self.is_shared = False  # with a thread: the host sees what is stored as a processor does
        self._seen = bytes(PAGE)  # EventIdx as the host sees it otherwise
        super().__init__(0)

    def _race(self) -> None:
        act, self.act = self.act, None  # not while it acts
        if act is not None:
            act()
            self.act = act

    def view(self, iova: int, size: int) -> memoryview:
        if iova in self.buffers:
            self._race()
        return super().view(iova, size)

    def barrier(self) -> None:
        self._race()
        self.publish()
        self._race()

    def publish(self) -> None:
        if self.event:
            self._seen = self.read(self.event, PAGE)

    def event_index(self, index: int) -> int:
        """What the host sees once what it has written itself can be seen."""
        barrier()
        seen = self.read(self.event, PAGE) if self.is_shared else self._seen
        return int.from_bytes(seen[4 * index : 4 * index + 4], "little")


class Host:
    """A queue pair of a host that keeps to the rules for shadow doorbells. Its real doorbells arrive later."""

    def __init__(self, ram: RacingRam, pair: QueuePair, shadow: int, place: int, posted: list[tuple[int, int]]) -> None:
        self._ram = ram
        self._pair = pair
        self._shadow = shadow
        self._place = place  # a page
        self._posted = posted  # real doorbells on their way: (offset, value)
        self._free = pair.sq_entries - 1
        self.outstanding = 0
        self.doorbells = 0

    def _write(self, index: int, new: int) -> None:
        place = self._shadow + 4 * index
        old = int.from_bytes(self._ram.read(place, 4), "little")
        self._ram.write(place, new.to_bytes(4, "little"))
        if needs_doorbell(self._ram.event_index(index), new, old):
            self._posted.append((DOORBELLS + 4 * index, new))
            self.doorbells += 1

    def submit(self, number: int) -> None:
        pair = self._pair
        for _ in range(min(number, self._free)):
            command = read_command(self._place) if pair.sq_tail % 2 else flush_command()
            self._ram.write(pair.sq + pair.sq_tail * SQE_SIZE, bytes(command))
            pair.sq_tail = (pair.sq_tail + 1) % pair.sq_entries
            self.outstanding += 1
            self._free -= 1
        if number:
            self._write(2 * pair.qid, pair.sq_tail)

    def consume(self, number: int) -> None:
        pair = self._pair
        found = 0
        for _ in range(number):
            completion = Completion(self._ram.read(pair.cq + pair.cq_head * CQE_SIZE, CQE_SIZE))
            if completion.phase != bool(pair.phase):
                break
            pair.cq_head = (pair.cq_head + 1) % pair.cq_entries
            pair.phase ^= not pair.cq_head
            found += 1
            self._free = (completion.sqhd - pair.sq_tail - 1) % pair.sq_entries
        self.outstanding -= found
        assert self.outstanding >= 0, "a completion too many"
        if found:
            self._write(2 * pair.qid + 1, pair.cq_head)


def racing_bench(new_bench: NewBench) -> tuple[Bench, RacingRam]:
    ram = RacingRam()
    bench = new_bench(ram=ram)
    ram.is_shared = bench.engine is not None
    ram.map(0, 4 << 20)
    bench.driver.enable()
    return bench, ram


@pytest.mark.fact("A33", clause=CLAUSE, kills=("no-second-look", "no-barrier", "event-index-never-written"))
@pytest.mark.fact("B8", clause=CLAUSE, kills=("full-cq-ignores-shadow",))
def test_no_wake_up_is_lost_in_any_order_of_accesses(new_bench: NewBench) -> None:
    doorbells = sum(race(new_bench, seed) for seed in random.sample(range(1 << 32), 12))
    assert doorbells > 0


def race(new_bench: NewBench, seed: int) -> int:
    """Some hundred rounds of a host and a controller that interleave at random; the doorbells that the host rang."""
    print("seed", seed)
    chance = random.Random(seed)
    bench, ram = racing_bench(new_bench)
    driver = bench.driver
    sizes = [(chance.choice((2, 3, 4, 8)), chance.choice((2, 3, 4, 16))) for _ in range(2)]
    pairs = []
    shadow, event = set_buffers(driver)
    for qid, (sq_entries, cq_entries) in enumerate(sizes, 1):
        place = driver.create_cq(qid, cq_entries)
        pairs.append(QueuePair(qid, driver.create_sq(qid, sq_entries), place, sq_entries, cq_entries))
    posted: list[tuple[int, int]] = []
    hosts = [Host(ram, pair, shadow, driver.alloc(PAGE), posted) for pair in pairs]
    ram.buffers, ram.event = range(shadow, event + PAGE), event
    ram.publish()

    def act() -> None:
        host = chance.choice(hosts)
        what = chance.randrange(6)
        if what == 0:
            host.submit(chance.randrange(1, 4))
        elif what == 1:
            host.consume(chance.randrange(1, 4))

    for _ in range(60):
        ram.act = act
        for _ in range(chance.randrange(1, 12)):
            act()
            pump(bench, ram, posted)
        ram.act = None
        settle(bench, ram, posted, hosts)
        assert [host.outstanding for host in hosts] == [0, 0], f"a wake-up was lost, seed {seed}"
    return sum(host.doorbells for host in hosts)


def pump(bench: Bench, ram: RacingRam, posted: list[tuple[int, int]]) -> None:
    """Let one real doorbell arrive, if one is on its way, and the controller do a batch."""
    if posted:
        offset, value = posted.pop(0)
        bench.controller.write(offset, value.to_bytes(4, "little"))
    while bench.controller.run():
        pass
    if ram.act is not None:
        ram.act()
    ram.publish()


def settle(bench: Bench, ram: RacingRam, posted: list[tuple[int, int]], hosts: list[Host]) -> None:
    """The host submits nothing more and consumes what there is, until nothing moves."""
    before: object = None
    while posted or before != [host.outstanding for host in hosts]:
        before = [host.outstanding for host in hosts]
        if bench.engine is not None:
            bench.engine.wait_until_idle()
        pump(bench, ram, posted)
        for host in hosts:
            host.consume(2)


@pytest.mark.fact("A33", clause=CLAUSE, kills=("pin-ignores-shadow",))
@pytest.mark.fact("A31", clause="Base 1.4, 7.5.1", kills=("pin-ignores-shadow",))
def test_the_pin_follows_shadow_heads(bench: Bench) -> None:
    """The host is asked for its next head while the pin is asserted. It had the buffers before it left MSI-X."""
    driver = bench.driver
    driver.enable()
    shadow, event = set_buffers(driver)
    bench.ram.msix_enabled = False
    bench.controller.interrupts_changed()
    pair = driver.create_queues(1, 8)
    place = driver.alloc(PAGE)
    for _ in range(20):
        announce(driver, pair, shadow, read_command(place))
        driver.ring_sq(pair)
        assert bench.ram.pin_level
        old = pair.cq_head
        consume(driver, pair, shadow)
        if needs_doorbell(word(driver, event + 12), pair.cq_head, old):
            driver.ring_cq(pair)
        assert not bench.ram.pin_level
