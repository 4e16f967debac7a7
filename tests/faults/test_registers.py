"""Register accesses of every size and place: a fault is about the bytes of its register, and about no others."""

from __future__ import annotations

from typing import Any

import pytest

from faults.rig import Rig
from nvmeemu.faults import Fault, FaultError
from nvmeemu.spec import Capabilities, Configuration
from nvmeemu.testing import CAP, CC, CSTS, INTMS, VS

INTMC = 0x10
PIECES = [1, 2, 4, 8]


def read(rig: Rig, offset: int, size: int, piece: int = 8) -> bytes:
    """In accesses of so many bytes."""
    return b"".join(
        rig.bench.read_bar(start, min(piece, offset + size - start)) for start in range(offset, offset + size, piece)
    )


def write(rig: Rig, offset: int, data: bytes) -> None:
    rig.bench.write_bar(offset, data)
    rig.bench.settle()


def number(data: bytes) -> int:
    return int.from_bytes(data, "little")


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.kills("set-acts-on-whole-registers", "set-changes-its-neighbours")
def test_fields_are_set_however_the_register_is_read(piece: int, rig: Rig) -> None:
    old = number(read(rig, 0, 8))
    rig.add({"set": {"mqes": 2, "to": 255, "mpsmax": 15}}, "register", {"register": "cap", "access": "read"})
    wanted = Capabilities.of(old)
    wanted.data = bytearray(wanted.data)
    wanted.mqes, wanted.to, wanted.mpsmax = 2, 255, 15
    assert read(rig, 0, 8, piece) == bytes(wanted)


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("register", ["cap", 0])
@pytest.mark.kills("set-puts-the-low-half-into-both")
def test_a_number_is_that_of_the_whole_register(register: Any, piece: int, rig: Rig) -> None:
    rig.add({"set": 0x1122334455667788}, "register", {"register": register, "access": "read"})
    assert number(read(rig, 0, 8, piece)) == 0x1122334455667788


@pytest.mark.parametrize("match", [{"register": "csts"}, {}])
def test_csts_in_a_read_that_begins_before_it(match: dict[str, Any], rig: Rig) -> None:
    rig.add({"set": {"cfs": 1}}, "register", {**match, "access": "read"})
    assert read(rig, 0x18, 8) == bytes(4) + b"\3\0\0\0"
    assert read(rig, CSTS, 1) == b"\3"
    assert read(rig, CSTS + 1, 3) == bytes(3)


def test_cc_in_reads_of_two_bytes(rig: Rig) -> None:
    rig.add({"set": {"shn": 2, "iosqes": 1}}, "register", {"register": "cc", "access": "read"})
    shown = Configuration.of(number(read(rig, CC, 4, piece=2)))
    assert (shown.shn, shown.iosqes, shown.iocqes, shown.en) == (2, 1, 4, True)


@pytest.mark.kills("a-hit-that-changes-nothing")
def test_an_access_that_it_cannot_change_is_none_of_its(rig: Rig) -> None:
    fault = rig.add({"set": {"mqes": 2}}, "register", {"access": "read"}, nth=1)
    for offset in (4, 2, CC, CSTS):  # the high half of CAP, TO and flags, other registers
        read(rig, offset, 2)
    assert (fault.seen, fault.hits) == (0, 0)
    assert number(read(rig, 0, 2)) == 1
    assert (fault.seen, fault.hits) == (1, 1)


@pytest.mark.kills("corruption-spreads-to-the-neighbours")
def test_corruption_stays_in_the_register(rig: Rig) -> None:
    rig.add({"corrupt": "ones"}, "register", {"register": "csts", "access": "read"})
    assert read(rig, 0x18, 8) == bytes(4) + b"\xff" * 4
    assert read(rig, 0x18, 4) == bytes(4)
    assert read(rig, CSTS + 2, 2) == b"\xff" * 2


@pytest.mark.parametrize(("do", "then"), [("drop", 0), ({"delay": 1}, 1), ({"set": 0}, 0)])
@pytest.mark.parametrize(("register", "at_once", "late"), [("intms", 0b010, 0b110), ("intmc", 0b111, 0b110)])
@pytest.mark.kills("a-dropped-write-takes-its-neighbours-along")
def test_the_rest_of_a_write_arrives(do: Any, then: int, register: str, at_once: int, late: int, rig: Rig) -> None:
    """INTMS and INTMC in one write of 8 bytes: only what is for one of them is lost, late, or another value."""
    rig.driver.set_reg(INTMS, 0b011)
    rig.add(do, "register", {"register": register, "access": "write"})
    write(rig, INTMS, b"\4\0\0\0" + b"\1\0\0\0")
    assert number(read(rig, INTMS, 4)) == at_once
    rig.later()
    assert number(read(rig, INTMS, 4)) == (late if then else at_once)


def test_a_base_that_is_written_by_halves(rig: Rig) -> None:
    rig.driver.set_reg(CC, 0)
    rig.add({"set": 0x1_2345_6000}, "register", {"register": "asq", "access": "write"})
    write(rig, 0x2C, bytes(4))
    write(rig, 0x28, bytes(4))
    assert number(read(rig, 0x28, 8)) == 0x1_2345_6000


@pytest.mark.parametrize(
    ("offset", "data"), [(INTMC, b"\1" + bytes(7)), (CC, bytes(4)), (CC, bytes(2)), (CC, bytes(1))]
)
@pytest.mark.kills("value-is-that-of-the-access")
def test_a_value_is_that_of_the_register(offset: int, data: bytes, rig: Rig) -> None:
    fault = rig.add("drop", "register", {"register": "cc", "value": {"mask": 1, "value": 0}})
    other = rig.add("drop", "register", {"register": "cc", "value": {"mask": 1, "value": 1}})
    write(rig, offset, data)
    assert (fault.hits, other.hits) == (1, 0)
    assert rig.driver.status.rdy


@pytest.mark.parametrize(("offset", "data"), [(INTMC, bytes(8)), (CC, bytes(2)), (CC, bytes(1))])
@pytest.mark.kills("slow-rdy-wants-a-whole-cc")
def test_rdy_is_slow_however_cc_is_written(offset: int, data: bytes, rig: Rig) -> None:
    rig.add({"slow_rdy": 2})
    write(rig, offset, data)
    assert rig.driver.status.rdy
    rig.bench.clock.advance(2)
    assert not rig.driver.status.rdy


@pytest.mark.parametrize(
    ("match", "do", "reason"),
    [
        ({"register": "cc"}, {"set": 1 << 32}, "do.set: 4294967296 is not within 0..4294967295"),
        ({"register": 4}, {"set": {"mqes": 2}}, "do.set: 'mqes' is no field of 4: or give value"),
    ],
)
def test_what_could_never_be_is_refused(match: Any, do: Any, reason: str) -> None:
    with pytest.raises(FaultError) as refused:
        Fault({**match, "access": "read"}, "register", do)
    assert str(refused.value) == reason


@pytest.mark.parametrize("register", ["cap", "VS", "csts", CSTS, CAP + 4, 0x40])
@pytest.mark.kills("a-read-only-register-is-written")
def test_writes_that_change_nothing_are_none_of_its(register: Any, rig: Rig) -> None:
    for do in ("drop", {"delay": 1}, "duplicate"):
        with pytest.raises(FaultError, match=f"{register} is read-only, no write changes it"):
            Fault({"register": register}, "register", do)
    with pytest.raises(FaultError, match="read-only"):
        Fault({"register": register, "access": "write"}, "register", {"set": 1})
    fault = rig.add({"set": 1}, "register", {"register": register})
    state = rig.add({"rdy": 1}, "register", {"register": register, "access": "write"})
    offset = register if isinstance(register, int) else {"cap": CAP, "VS": VS, "csts": CSTS}[register]
    write(rig, offset, bytes(4))
    assert (fault.hits, state.hits) == (0, 1)
    assert rig.driver.reg(offset) == 1
    assert fault.hits == 1
