"""Linux and nvme-cli format a drive: the new block size and the integrity profile show up, and are used, also
a guard error on purpose. Then nvme-cli copies blocks."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from nvmeemu.faults import Fault
from nvmeemu.pytest_plugin.guests import NvmeGuest

BAD = 5  # a block whose guard is wrong on purpose
DISK = "/sys/block/nvme0n1"
WRITE_AND_READ = (
    "dd if=/dev/urandom of=/tmp/x bs=64k count=16 && dd if=/tmp/x of=/dev/nvme0n1 bs=64k oflag=direct && "
    "dd if=/dev/nvme0n1 of=/tmp/y bs=64k count=16 iflag=direct && cmp /tmp/x /tmp/y"
)
# The first two pages change places on their way.
COPY = (
    "dd if=/tmp/x of=/dev/nvme0n1 bs=4k count=2 oflag=direct && "
    "nvme copy /dev/nvme0n1 --sdlba=64 --slbs=8,0 --blocks=7,7 && "
    "dd if=/dev/nvme0n1 of=/tmp/y bs=4k skip=8 count=2 iflag=direct && "
    "(dd if=/tmp/x bs=4k skip=1 count=1; dd if=/tmp/x bs=4k count=1) 2>/dev/null | cmp - /tmp/y"
)


def meets_a_guard_error(guest: NvmeGuest) -> None:
    """On purpose: the kernel has our drive check the guards, and takes the error for what it is."""
    with_error = f"dd if=/dev/nvme0n1 of=/dev/null bs=4k skip={BAD} count=1 iflag=direct"
    guest.faults.add(Fault({"opcode": "read", "lba": BAD}, do="guard error"))
    failed = guest.run(f"{with_error} 2>&1")
    assert failed.status != 0
    said = guest.check("dmesg")
    assert f"protection error, dev nvme0n1, sector {BAD * 8} op 0x0:(READ)" in said, said
    guest.faults.clear()
    guest.check(with_error)


def test_linux_uses_each_format_that_nvme_cli_has_chosen(
    nvme_boot: Callable[..., AbstractContextManager[NvmeGuest]],
) -> None:
    """The kernel makes and checks the guards itself, so ours are compared with another's."""
    formats = (
        ("--lbaf=5 --pi=1", 4096, "T10-DIF-TYPE1-CRC"),
        ("--lbaf=1 --pi=3", 512, "T10-DIF-TYPE3-CRC"),
        ("--lbaf=8 --pi=1", 4096, "EXT-DIF-TYPE1-CRC64"),
        ("--lbaf=6", 4096, "nop"),
        ("--lbaf=4 --ses=1", 4096, "none"),
    )
    with nvme_boot(size="64M", serve=["--format", "allow"]) as guest:
        for options, size, profile in formats:
            guest.check(f"nvme format /dev/nvme0n1 {options} --force")
            assert guest.check(f"cat {DISK}/queue/logical_block_size").strip() == str(size), options
            assert guest.check(f"cat {DISK}/integrity/format").strip() == profile, options
            guest.check(WRITE_AND_READ)
            if profile == "T10-DIF-TYPE1-CRC":
                meets_a_guard_error(guest)
        guest.check("nvme format /dev/nvme0n1 --lbaf=0 --ses=2 --force")
        left = guest.check("dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c")
        assert left.strip() == "0"
        assert guest.run("nvme format /dev/nvme0n1 --lbaf=14 --force").status != 0
        guest.check(COPY)
        _states_and_streams(guest)


def _states_and_streams(guest: NvmeGuest) -> None:
    """The same namespace, in blocks of 512 bytes: nvme-cli makes blocks unreadable, finds them, and uses streams."""
    read = "dd if=/dev/nvme0n1 of=/dev/null bs=512 skip=8 count=2 iflag=direct 2>&1"
    status = "nvme get-lba-status /dev/nvme0 --namespace-id=1 --start-lba=0 --max-dw=64 --action=0x11 --range-len=64"
    guest.check("nvme write-uncor /dev/nvme0n1 --start-block=8 --block-count=1")
    assert guest.run(read).status != 0
    assert "DSLBA: 0x00000000000008, NLB: 0x000001" in guest.check(status)
    guest.check("dd if=/dev/zero of=/dev/nvme0n1 bs=512 seek=8 count=2 oflag=direct 2>&1")
    guest.check(read)
    guest.check("nvme dir-send /dev/nvme0n1 --dir-type=0 --target-dir=1 --dir-oper=1 --endir=1")
    guest.check("head -c 512 /dev/zero >/tmp/zero")
    named = "--data-size=512 --data=/tmp/zero --dir-type=1 --dir-spec=3"
    guest.check(f"nvme write /dev/nvme0n1 --start-block=0 --block-count=0 {named}")
    told = guest.check("nvme dir-receive /dev/nvme0n1 --dir-type=1 --dir-oper=2 --data-len=64 --human-readable")
    assert re.search(r"(?i)count\s*:\s*1\b", told), told
    assert re.search(r"(?i)identifier.*:\s*3\b", told), told
    guest.check("nvme dir-send /dev/nvme0n1 --dir-type=1 --dir-oper=1 --dir-spec=3")
