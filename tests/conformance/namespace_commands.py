"""Namespace Management and Namespace Attachment as a host sends them, and the lists that Identify gives."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from nvmeemu.spec import (
    PAGE_MIN,
    AttachmentSelect,
    Cns,
    Completion,
    ControllerList,
    HostNamespace,
    Identify,
    IdentifyController,
    LogId,
    ManagementSelect,
    NamespaceAttachment,
    NamespaceManagement,
    Status,
)
from nvmeemu.testing import Driver


def create(driver: Driver, blocks: int, *, nsid: int = 0, csi: int = 0, **given: Any) -> Completion:
    """Create a namespace; ``given`` are fields of ``HostNamespace``."""
    page = HostNamespace(**{"nsze": blocks, "ncap": blocks, **given})
    command = NamespaceManagement(nsid=nsid, sel=ManagementSelect.CREATE, csi=csi)
    return _send(driver, command, bytes(page))


def created(driver: Driver, blocks: int, **given: Any) -> int:
    """The NSID of a new namespace."""
    completion = create(driver, blocks, **given)
    assert completion.status == Status.SUCCESS, repr(completion)
    return completion.dw0


def delete(driver: Driver, nsid: int) -> Completion:
    return driver.execute(driver.admin, NamespaceManagement(nsid=nsid, sel=ManagementSelect.DELETE))


def attach(driver: Driver, nsid: int, *cntlids: int, number: int | None = None) -> Completion:
    """``number``: what the list says of its length."""
    return _attachment(driver, AttachmentSelect.ATTACH, nsid, cntlids, number)


def detach(driver: Driver, nsid: int, *cntlids: int, number: int | None = None) -> Completion:
    return _attachment(driver, AttachmentSelect.DETACH, nsid, cntlids, number)


def _attachment(driver: Driver, select: int, nsid: int, cntlids: Sequence[int], number: int | None) -> Completion:
    ids = struct.pack(f"<{len(cntlids)}H", *cntlids)
    page = ControllerList(number=len(cntlids) if number is None else number, ids=ids)
    return _send(driver, NamespaceAttachment(nsid=nsid, sel=select), bytes(page))


def _send(driver: Driver, command: NamespaceManagement | NamespaceAttachment, data: bytes) -> Completion:
    with driver.scratch():
        command.prp1 = driver.alloc(PAGE_MIN)
        driver.bus.write_memory(command.prp1, data)
        return driver.execute(driver.admin, command)


def succeeds(completion: Completion) -> Completion:
    assert completion.status == Status.SUCCESS, repr(completion)
    return completion


def refused(completion: Completion, status: Status) -> None:
    """It must have failed like this, with Do Not Retry."""
    assert completion.status == status, f"{completion!r}, expected {status!r}"
    assert completion.dnr
    assert completion.dw0 == 0


def info(driver: Driver) -> int:
    """Command Specific Information of the last error."""
    return int.from_bytes(driver.get_log(LogId.ERROR_INFORMATION, 64)[32:40], "little")


def nsids(driver: Driver, cns: int = Cns.ACTIVE_NAMESPACES, after: int = 0, csi: int = 0) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", driver.identify(cns, after, csi)) if nsid]


def cntlids(driver: Driver, cns: int, nsid: int = 0, cntid: int = 0) -> list[int]:
    with driver.scratch():
        place = driver.alloc(PAGE_MIN)
        driver.succeed(driver.admin, Identify(nsid=nsid, cns=cns, cntid=cntid, prp1=place))
        page = ControllerList(driver.bus.read_memory(place, PAGE_MIN))
    return list(struct.unpack_from(f"<{page.number}H", page.ids))


def capacity(driver: Driver) -> tuple[int, int]:
    """TNVMCAP and UNVMCAP."""
    page = IdentifyController(driver.identify(Cns.CONTROLLER))
    return page.tnvmcap, page.unvmcap
