"""What is known of a command stands with it in ``spec``: nobody else lists opcodes, and one call adds a command."""

from __future__ import annotations

import argparse
import ast
import importlib
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

import nvmeemu
from nvmeemu import admin, io, spec
from nvmeemu.commands.feature import Feature, Scope
from nvmeemu.commands.features import FEATURES, VendorFeatures
from nvmeemu.commands.log_pages import PAGES, LogPage
from nvmeemu.controller.request import CommandEntry, CommandSet, Request
from nvmeemu.controller.state import ControllerState
from nvmeemu.faults import Fault
from nvmeemu.faults.words import FaultError
from nvmeemu.profiles.steps import StepError, SubmitStep, parse_steps
from nvmeemu.spec.layout import Record, flags, uint
from nvmeemu.spec.names import Names, bare
from nvmeemu.testing import Bench, Driver
from nvmeemu.trace import words
from nvmeemu.trace.coverage import Coverage
from nvmeemu.trace.filters import opcode

SOURCE = Path(nvmeemu.__file__).parent
ENUMS = ("AdminOpcode", "NvmOpcode")
THEMES = ("registers", "statuses", "entries", "events", "features", "logs", "identify", "sgl", "commands", "directives")


class Vendor(spec.Opcode):
    SHOW_LAMP = 0xC1


class ShowLamp(spec.Command):
    OPCODE = Vendor.SHOW_LAMP
    colour = uint(spec.CDW10, 4)


def opcodes_in(path: Path) -> Iterator[str]:
    """The opcodes that this file names."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if not isinstance(node, ast.Attribute):
            continue
        of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
        if of in ENUMS:
            yield f"{path.relative_to(SOURCE)}:{node.lineno}: {of}.{node.attr}"


def test_no_module_but_the_spec_lists_opcodes() -> None:
    """Not the tables of handlers either: their rows name commands."""
    others = (path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE / "spec")
    assert not [one for path in others for one in opcodes_in(path)]


def test_the_search_for_opcodes_finds_them() -> None:
    assert len(list(opcodes_in(SOURCE / "spec/commands.py"))) == len(spec.AdminOpcode) + len(spec.NvmOpcode)


@pytest.mark.parametrize(
    ("table", "kind"), [(spec.ADMIN_COMMANDS, spec.AdminOpcode), (spec.NVM_COMMANDS, spec.NvmOpcode)]
)
def test_every_opcode_is_a_command_of_that_name(table: spec.CommandTable, kind: type[spec.Opcode]) -> None:
    assert set(table) == set(kind)
    for number in kind:
        assert bare(table[number].__name__) == bare(number.name)
        assert table[number]().opcode == number  # one that is made has it
        assert table.names.get(number) is number


def test_commands_know_what_they_do() -> None:
    kinds = spec.NVM_COMMANDS.values()
    changing = {spec.Write, spec.WriteUncorrectable, spec.WriteZeroes, spec.DatasetManagement, spec.Copy}
    assert {one for one in kinds if one.CHANGES_MEDIA} == changing
    assert {one for one in kinds if one.MOVES_BLOCKS} == {spec.Read, spec.Write, spec.Compare}
    assert {one for one in spec.ADMIN_COMMANDS.values() if one.CHANGES_MEDIA} == {spec.FormatNvm}
    assert not [one for one in spec.ADMIN_COMMANDS.values() if one.MOVES_BLOCKS]
    assert spec.DataTransfer.of(spec.Read.OPCODE) == spec.DataTransfer.TO_HOST
    assert spec.DataTransfer.of(spec.Compare.OPCODE) == spec.DataTransfer.TO_CONTROLLER
    assert spec.DataTransfer.of(spec.Flush.OPCODE) == spec.DataTransfer.NONE


@pytest.mark.parametrize(
    ("commands", "known"), [(admin.COMMANDS, spec.ADMIN_COMMANDS), (io.COMMANDS, spec.NVM_COMMANDS)]
)
def test_the_handlers_take_the_layouts_of_the_spec(commands: CommandSet, known: spec.CommandTable) -> None:
    """Faults match what handlers get: the classes must be the same."""
    assert {number: entry.kind for number, entry in commands.items()} == dict(known)


def test_a_command_that_is_added_is_known_to_all_by_its_name() -> None:
    entry = bytes(ShowLamp(cid=7, colour=3))
    with spec.ADMIN_COMMANDS.extended(ShowLamp):
        assert words.command(0, entry) == "Show Lamp colour=3"
        assert words.command(1, entry) == "I/O opcode C1h cdw10=0x3"
        fault = Fault({"opcode": "show lamp", "colour": 3}, do="drop")
        assert fault.match.commands == {(True, 0xC1)}
        opcode("show-lamp")
        (step,) = parse_steps("admin show_lamp colour=3 -> any")
        assert isinstance(step, SubmitStep)
        assert isinstance(step.command, ShowLamp)
        assert step.command.colour == 3
        assert "Show Lamp" in Coverage().admin.unused
    assert words.command(0, entry) == "admin opcode C1h cdw10=0x3"
    with pytest.raises(FaultError, match="'show lamp' is none of delete_sq"):
        Fault({"opcode": "show lamp"}, do="drop")
    with pytest.raises(FaultError, match="no command has such a field"):
        Fault({"colour": 3}, do="drop")
    with pytest.raises(argparse.ArgumentTypeError, match="no opcode 'show-lamp'"):
        opcode("show-lamp")
    with pytest.raises(StepError, match="show_lamp"):
        parse_steps("admin show_lamp")


def test_names_that_are_added_are_known_to_all() -> None:
    class Mine(IntEnum):
        LAMPS = 0xC4

    entry = bytes(spec.GetLogPage(lid=0xC4, numd=1))
    with spec.LOG_NAMES.extended(Mine.LAMPS):
        assert words.command(0, entry) == "Get Log Page Lamps numd=1"
        assert Fault({"opcode": "get log page", "lid": "lamps"}, do="drop").match.commands == {(True, 2)}
    assert words.command(0, entry) == "Get Log Page lid=C4h numd=1"


def test_neither_a_number_nor_a_name_is_given_twice() -> None:
    class Other(spec.Opcode):
        IDENTIFY = 0xC1
        LAMP = spec.AdminOpcode.IDENTIFY

    class NameTwice(spec.Command):
        OPCODE = Other.IDENTIFY

    class NumberTwice(spec.Command):
        OPCODE = Other.LAMP

    before = dict(spec.ADMIN_COMMANDS)
    for kind in (NameTwice, NumberTwice):
        with pytest.raises(ValueError, match="IDENTIFY"), spec.ADMIN_COMMANDS.extended(kind):
            pass
    assert dict(spec.ADMIN_COMMANDS) == before
    assert list(spec.ADMIN_COMMANDS.names) == list(spec.AdminOpcode)


def test_the_spec_has_all_names_of_its_themes() -> None:
    found: set[str] = set()
    for theme in THEMES:
        module = importlib.import_module(f"nvmeemu.spec.{theme}")
        for node in ast.parse(Path(str(module.__file__)).read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    assert {name for name in found if not name.startswith("_")} == set(spec.__all__)


def test_flags_read_as_their_names() -> None:
    class Page(Record, size=4):
        bits = flags(1, 2, spec.Oacs)

    page = Page(bits=spec.Oacs.FIRMWARE | spec.Oacs.LOCKDOWN)
    assert bytes(page) == b"\0\x04\x04\0"
    assert page.bits is spec.Oacs.FIRMWARE | spec.Oacs.LOCKDOWN
    assert Page(bytes.fromhex("00008000")).bits == 1 << 15  # one without a name


def test_names_are_those_of_an_enum_until_more_are_added() -> None:
    names = Names(spec.Cns)
    assert [*names] == [*spec.Cns]
    assert names.get(0xC0) is None
    assert 0x01 in names
    assert 0xC0 not in names


# --- what a controller has: rows of a user's


class Lamp(Feature):
    """It may be saved, and has a value for each colour."""

    is_saveable = True
    oncs = spec.Oncs.RESERVATIONS  # any bit that nothing else sets

    def which(self, controller: ControllerState, cdw11: int) -> int:
        return cdw11 >> 16

    def default(self, controller: ControllerState, which: int) -> int:
        return 7

    def given(self, request: Request[spec.SetFeatures]) -> int:
        return request.command.cdw11 & 0xFF


class LampOfNamespace(Feature):
    scope = Scope.NAMESPACE
    is_changeable = False


LAMP = 0xC2


@pytest.fixture
def driver() -> Driver:
    found = Bench().driver
    found.enable()
    return found


def set_feature(driver: Driver, cdw11: int, *, sv: bool = False, nsid: int = 0) -> spec.Completion:
    return driver.execute(driver.admin, spec.SetFeatures(fid=LAMP, sv=sv, cdw11=cdw11, nsid=nsid))


def values(driver: Driver, cdw11: int = 0) -> list[int]:
    """The current, default and saved ones."""
    return [driver.get_feature(LAMP, sel=sel, cdw11=cdw11) for sel in range(3)]


def test_a_saved_value_is_back_after_a_reset(driver: Driver) -> None:
    with FEATURES.extended(Lamp(LAMP)):
        assert driver.get_feature(LAMP, sel=spec.Select.CAPABILITIES) == 0b101
        assert values(driver) == [7, 7, 7]
        assert set_feature(driver, 1).status == spec.Status.SUCCESS
        assert values(driver) == [1, 7, 7]
        assert set_feature(driver, 2, sv=True).status == spec.Status.SUCCESS
        assert set_feature(driver, 3 | 1 << 16, sv=True).status == spec.Status.SUCCESS
        assert set_feature(driver, 4).status == spec.Status.SUCCESS
        assert values(driver) == [4, 7, 2]
        assert values(driver, 1 << 16) == [3, 7, 3]
        driver.disable()
        driver.enable()
        assert values(driver) == [2, 7, 2]
        assert values(driver, 1 << 16) == [3, 7, 3]
    assert set_feature(driver, 1).status == spec.Status.INVALID_FIELD


def test_a_feature_of_namespaces_that_nobody_can_change(driver: Driver) -> None:
    with FEATURES.extended(LampOfNamespace(LAMP)):
        assert driver.get_feature(LAMP, sel=spec.Select.CAPABILITIES) == 0b010
        assert driver.get_feature(LAMP, nsid=1) == 0
        assert set_feature(driver, 1, nsid=1).status == spec.Status.FEATURE_NOT_CHANGEABLE
        assert set_feature(driver, 1, nsid=1, sv=True).status == spec.Status.FEATURE_NOT_SAVEABLE


def test_a_feature_of_one_controller_is_no_other_ones(driver: Driver) -> None:
    bench = driver.bus
    assert isinstance(bench, Bench)
    other = Bench().driver
    other.enable()
    bench.controller.state.part(VendorFeatures).add(Lamp(LAMP))
    assert values(driver) == [7, 7, 7]
    assert set_feature(other, 1).status == spec.Status.INVALID_FIELD


def test_identify_and_the_logs_tell_of_rows_that_are_added(driver: Driver) -> None:
    def told() -> tuple[spec.IdentifyController, spec.CommandEffectsLog, bytes]:
        page = spec.IdentifyController(driver.identify(spec.Cns.CONTROLLER))
        effects = spec.CommandEffectsLog(driver.get_log(spec.LogId.COMMAND_EFFECTS, 4096))
        return page, effects, driver.get_log(spec.LogId.SUPPORTED_LOG_PAGES, 1024)

    def show_lamp(request: Request[ShowLamp]) -> int:
        return request.command.colour + 1

    before, effects, pages = told()
    assert not effects.admin[ShowLamp.OPCODE].csupp
    offered = [True]
    entry = CommandEntry(
        ShowLamp, show_lamp, spec.Effect.NIC, spec.Oacs.LOCKDOWN, is_offered=lambda controller: offered[0]
    )
    page = LogPage(
        0xC4,
        lambda request: bytes(16),
        lpa=spec.Lpa.TELEMETRY,
        oaes=spec.Notice.TELEMETRY,
        is_offered=lambda controller: offered[0],
    )
    with admin.COMMANDS.extended(entry), PAGES.extended(page), FEATURES.extended(Lamp(LAMP)):
        after, effects, listed = told()
        assert after.oacs == before.oacs | spec.Oacs.LOCKDOWN
        assert after.oncs == before.oncs | spec.Oncs.RESERVATIONS
        assert after.lpa == before.lpa | spec.Lpa.TELEMETRY
        assert after.oaes == before.oaes | spec.Notice.TELEMETRY
        told_of_it = spec.CommandEffect(csupp=True, nic=True, csp=spec.FEATURE_OF_CONTROLLER)
        assert effects.admin[ShowLamp.OPCODE] == told_of_it
        assert (pages[4 * 0xC4], listed[4 * 0xC4]) == (0, 1)
        assert driver.get_log(0xC4, 16) == bytes(16)
        assert driver.execute(driver.admin, ShowLamp(colour=4)).dw0 == 5
        offered[0] = False
        hidden, effects, listed = told()
        assert (hidden.oacs, hidden.lpa, hidden.oaes) == (before.oacs, before.lpa, before.oaes)
        assert not effects.admin[ShowLamp.OPCODE].csupp
        assert listed == pages
        log = spec.GetLogPage(lid=0xC4, numd=4, nsid=spec.BROADCAST)
        assert driver.execute(driver.admin, log).status == spec.Status.INVALID_LOG_PAGE
    assert bytes(told()[0]) == bytes(before)


def test_a_row_takes_no_number_of_another() -> None:
    with pytest.raises(ValueError, match="already"):
        FEATURES.add(Lamp(spec.FeatureId.TIMESTAMP))
    with (
        pytest.raises(ValueError, match="already"),
        PAGES.extended(LogPage(0xC4, lambda request: b""), LogPage(spec.LogId.SMART, lambda request: b"")),
    ):
        pass
    assert 0xC4 not in PAGES
    assert PAGES[spec.LogId.SMART].is_of_controller
