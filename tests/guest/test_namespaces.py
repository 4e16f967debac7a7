"""A real Linux and nvme-cli create, attach, detach and delete namespaces: their block devices come and go at once."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvmeemu.guest.guest import Guest
from tools.guest.run import Run, Settings

CONTROLLER = "/dev/nvme0"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def linux() -> Iterator[Guest]:
    """With a drive that has a disk of the user's, and a pool."""
    with tempfile.TemporaryDirectory(prefix="nvme-", dir="/var/tmp") as name:
        run = Run(Settings(nvme_args=("--pool", "mem:256M"), timeout=1800), Path(name))
        with run.boot(run.linux()) as guest:
            guest.check(f"for i in $(seq 240); do [ -b {CONTROLLER}n1 ] && exit; sleep 0.5; done; exit 1", PATIENCE)
            yield guest


def nvme(linux: Guest, words: str) -> str:
    return linux.check(f"nvme {words} 2>&1", PATIENCE)


def told(linux: Guest, words: str) -> dict[str, Any]:
    return dict(json.loads(nvme(linux, f"{words} --output-format=json")))


def create(linux: Guest, words: str) -> int:
    said = nvme(linux, f"create-ns {CONTROLLER} {words}")
    found = re.search(r"nsid:\s*(\d+)", said)
    assert found, said
    return int(found[1])


def has(linux: Guest, nsid: int, is_there: bool) -> None:
    """The block device is there, or not, a moment after the event: nobody has asked the kernel to look."""
    test = f"[ {'' if is_there else '! '}-b {CONTROLLER}n{nsid} ]"
    linux.check(f"for i in $(seq 100); do {test} && exit 0; sleep 0.1; done; exit 1", PATIENCE)


def listed(linux: Guest, words: str = "") -> list[int]:
    return [
        int(nsid, 0) for nsid in re.findall(r"^\[ *\d+\]:\s*(\S+)", nvme(linux, f"list-ns {CONTROLLER} {words}"), re.M)
    ]


@pytest.mark.parametrize(("size", "blocks"), [(512, 8192), (4096, 1024)])
def test_a_namespace_comes_is_used_and_goes(linux: Guest, size: int, blocks: int) -> None:
    nsid = create(linux, f"--nsze={blocks} --ncap={blocks} --block-size={size}")
    device = f"{CONTROLLER}n{nsid}"
    assert (listed(linux), listed(linux, "--all")) == ([1], [1, nsid])
    has(linux, nsid, False)
    nvme(linux, f"attach-ns {CONTROLLER} --namespace-id={nsid} --controllers=1")
    has(linux, nsid, True)
    assert listed(linux) == [1, nsid]
    page = told(linux, f"id-ns {device}")
    assert (page["nsze"], 1 << page["lbafs"][page["flbas"] & 0xF]["ds"]) == (blocks, size)
    assert int(linux.check(f"cat /sys/block/nvme0n{nsid}/size")) * 512 == blocks * size
    linux.check(f"head -c 1048576 /dev/urandom >/data && dd if=/data of={device} bs=64k oflag=direct 2>&1")
    sums = linux.check(f"dd if={device} bs=64k count=16 iflag=direct 2>/dev/null | sha256sum; sha256sum </data").split()
    assert sums[0] == sums[2]
    nvme(linux, f"detach-ns {CONTROLLER} --namespace-id={nsid} --controllers=1")
    has(linux, nsid, False)
    nvme(linux, f"attach-ns {CONTROLLER} --namespace-id={nsid} --controllers=1")
    has(linux, nsid, True)
    assert linux.check(f"dd if={device} bs=64k count=16 iflag=direct 2>/dev/null | sha256sum").split()[0] == sums[2]
    nvme(linux, f"delete-ns {CONTROLLER} --namespace-id={nsid}")
    has(linux, nsid, False)
    assert listed(linux, "--all") == [1]
    again = create(linux, f"--nsze={blocks} --ncap={blocks} --block-size={size}")
    nvme(linux, f"attach-ns {CONTROLLER} --namespace-id={again} --controllers=1")
    has(linux, again, True)
    linux.check(f"head -c 1048576 /dev/zero | cmp -n 1048576 - {CONTROLLER}n{again}")
    nvme(linux, f"delete-ns {CONTROLLER} --namespace-id={again}")
    has(linux, again, False)


def test_capacities_of_the_whole_drive(linux: Guest) -> None:
    before = told(linux, f"id-ctrl {CONTROLLER}")
    assert int(before["unvmcap"]) == 256 << 20
    nsid = create(linux, "--nsze=2048 --ncap=2048 --flbas=0")
    after = told(linux, f"id-ctrl {CONTROLLER}")
    assert int(after["unvmcap"]) == (256 << 20) - (1 << 20)
    assert after["tnvmcap"] == before["tnvmcap"]
    nvme(linux, f"delete-ns {CONTROLLER} --namespace-id={nsid}")


def test_what_is_refused_is_said_by_name(linux: Guest) -> None:
    for words, said in (
        ("delete-ns /dev/nvme0 --namespace-id=1", "(?i)operation denied"),
        ("create-ns /dev/nvme0 --nsze=1000000 --ncap=1000000 --flbas=0", "(?i)insufficient capacity|more free space"),
        ("create-ns /dev/nvme0 --nsze=8 --ncap=4 --flbas=0", "(?i)thin provisioning"),
        ("attach-ns /dev/nvme0 --namespace-id=1 --controllers=1", "(?i)already attached"),
        ("attach-ns /dev/nvme0 --namespace-id=1 --controllers=7", "(?i)controller list"),
    ):
        output = linux.check(f"nvme {words} 2>&1; true", PATIENCE)
        assert re.search(said, output), output
