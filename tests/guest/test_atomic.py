"""Linux offers atomic writes as long as the namespace says, and takes them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from nvmeemu.pytest_plugin.guests import NvmeGuest

QUEUE = "/sys/block/nvme0n1/queue"
UNIT = 64 << 10
WRITER = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

int main(int count, char **words)
{
    size_t size = count == 2 ? strtoul(words[1], NULL, 10) : 0;
    struct iovec piece = {aligned_alloc(4096, (size + 4095) & ~4095ul), size};
    int disk = open("/dev/nvme0n1", O_WRONLY | O_DIRECT);

    memset(piece.iov_base, 'w', size);
    if (pwritev2(disk, &piece, 1, 0, 0x40 /* RWF_ATOMIC */) == (ssize_t)size)
        return 0;
    perror("pwritev2");
    return 1;
}
"""


def test_linux_writes_atomically(nvme_boot: Callable[..., AbstractContextManager[NvmeGuest]], tmp_path: Path) -> None:
    (tmp_path / "writer.c").write_text(WRITER)
    writer = tmp_path / "writer"
    subprocess.run(("cc", "-static", "-O1", "-o", writer, tmp_path / "writer.c"), check=True)
    with nvme_boot(size="64M", serve=["--atomic", "64K", "--format", "allow"]) as guest:
        guest.put(writer, "/tmp/writer")
        for options, size in (("", 512), ("--lbaf=4", 4096)):
            if options:
                guest.check(f"nvme format /dev/nvme0n1 {options} --force")
            offered = [
                guest.check(f"cat {QUEUE}/atomic_write_{name}_bytes") for name in ("max", "unit_max", "unit_min")
            ]
            assert [int(number) for number in offered] == [UNIT, UNIT, size]
            for length in (size, UNIT):
                guest.check(f"/tmp/writer {length}")
            assert "Invalid argument" in guest.run(f"/tmp/writer {UNIT + size} 2>&1").output
        assert guest.check(f"dd if=/dev/nvme0n1 bs={UNIT} count=1 2>/dev/null | tr -d w | wc -c").strip() == "0"
