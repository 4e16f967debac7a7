"""Every opcode that is not there, and every way to transfer that is not offered. Base 1.4, 4.2 and 4.6.1."""

from __future__ import annotations

import pytest

from conformance.tools import admin, fails, guarded, identify_controller, is_untouched
from nvmeemu.spec import AdminOpcode, Command, CommandEffectsLog, LogId, NvmOpcode, Status
from nvmeemu.testing import PAGE, VS, Driver

MANDATORY_ADMIN = (0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0A, 0x0C)
MANDATORY_NVM = (0x00, 0x01, 0x02)
FUSE_FIRST, FUSE_SECOND, FUSE_RESERVED = 0x01, 0x02, 0x03
SGL, SGL_SEGMENT, PSDT_RESERVED = 0x40, 0x80, 0xC0
NOBODY = 0xFFFFFF00
OF_NAMESPACE = 1  # CSP


def effects(driver: Driver) -> CommandEffectsLog:
    assert identify_controller(driver).lpa & 1 << 1
    return CommandEffectsLog(driver.get_log(LogId.COMMAND_EFFECTS, 4096))


@pytest.mark.fact("A15", clause="Base 1.4, Figure 126", kills=("unknown-opcode-invalid-field", "dnr-never"))
@pytest.mark.fact("A28", clause="Base 1.4, Figure 124, DNR", kills=("dnr-never",))
@pytest.mark.fact("B3", clause="Base 1.4, Figure 124, DNR", kills=("dnr-never",))
def test_an_admin_opcode_that_is_not_supported_is_invalid_and_not_retried(driver: Driver) -> None:
    """OpenVMM never sets Do Not Retry, and Linux tries five times."""
    log = effects(driver)
    unsupported = [opcode for opcode in range(256) if not log.admin[opcode].csupp]
    assert len(unsupported) > 200
    for opcode in unsupported:
        fails(driver, driver.admin, Command(opcode=opcode), Status.INVALID_OPCODE)


@pytest.mark.fact("A15", clause="Base 1.4, Figure 126", kills=("unknown-opcode-invalid-field", "dnr-never"))
def test_an_io_opcode_that_is_not_supported_is_invalid_and_not_retried(driver: Driver) -> None:
    log = effects(driver)
    queue = driver.create_queues()
    unsupported = [opcode for opcode in range(256) if not log.io[opcode].csupp]
    assert len(unsupported) > 200
    for opcode in unsupported:
        fails(driver, queue, Command(opcode=opcode, nsid=1), Status.INVALID_OPCODE)


@pytest.mark.fact("A15", clause="Base 1.4, 5.14.1.5", kills=("effects-log-incomplete",))
def test_what_the_effects_log_names_is_there(driver: Driver) -> None:
    log = effects(driver)
    assert all(log.admin[opcode].csupp for opcode in MANDATORY_ADMIN)
    assert all(log.io[opcode].csupp for opcode in MANDATORY_NVM)
    queue = driver.create_queues()
    for opcode in range(256):
        if log.admin[opcode].csupp and opcode != AdminOpcode.ASYNC_EVENT_REQUEST:
            assert admin(driver, opcode, nsid=NOBODY, prp1=1, prp2=1).status != Status.INVALID_OPCODE, hex(opcode)
        if log.io[opcode].csupp:
            completion = driver.execute(queue, Command(opcode=opcode, nsid=NOBODY))
            assert completion.status != Status.INVALID_OPCODE, hex(opcode)


@pytest.mark.fact("A15", clause="Base 2.0, Figure 211, CSP", kills=("effects-without-scopes",))
def test_the_effects_log_says_what_each_command_acts_on(driver: Driver) -> None:
    """From Base 2.0 on: a namespace, for the commands of the NVM command set, or the controller."""
    if driver.reg(VS) < 0x20000:
        return
    log = effects(driver)
    assert {one.csp for one in log.io if one.csupp} == {OF_NAMESPACE}
    assert all(one.csp for one in log.admin if one.csupp)


@pytest.mark.fact("A15", clause="Base 1.4, 5.14.1.5, LBCC", kills=("effects-hide-changes",))
def test_the_effects_log_says_which_commands_change_the_media(driver: Driver) -> None:
    log = effects(driver)
    for opcode in (NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT):
        assert log.io[opcode].lbcc == log.io[opcode].csupp
    for opcode in (NvmOpcode.READ, NvmOpcode.COMPARE):
        assert not log.io[opcode].lbcc


@pytest.mark.fact("A15", clause="Base 1.4, Figure 104, FUSE and PSDT", kills=("flags-ignored",))
@pytest.mark.parametrize("flags", [FUSE_FIRST, FUSE_SECOND, FUSE_RESERVED, SGL, SGL_SEGMENT, PSDT_RESERVED])
def test_admin_commands_are_neither_fused_nor_given_sgls(driver: Driver, flags: int) -> None:
    """Over PCIe an admin command has PRPs (Base 1.4, Figure 104)."""
    place = guarded(driver, PAGE)
    command = Command(opcode=AdminOpcode.IDENTIFY, prp1=place, cdw10=1, flags=flags)
    fails(driver, driver.admin, command, Status.INVALID_FIELD)
    assert is_untouched(driver, place, PAGE)
