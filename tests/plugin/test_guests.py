"""The plugin's guests: one real boot, and all that tests can see of it."""

from __future__ import annotations

import os

import pytest

from nvmeemu.guest import cache

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]
CACHE = cache.root().parent  # pytester changes HOME


def test_a_guest_that_several_tests_share(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("t")))
    pytester.makepyfile("""
        import pytest
        from nvmeemu.faults import Fault
        from nvmeemu.guest.errors import GuestError, GuestTimeout

        @pytest.fixture(scope="module")
        def nvme_guest(nvme_boot):
            with nvme_boot(size="64M", smp=2, append="nvme_core.io_timeout=20") as guest:
                yield guest

        def test_commands(nvme_guest, expect, trace):
            made = nvme_guest.run("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt")
            assert (made.status, made.output) == (0, "")
            nvme_guest.check("echo hello >/mnt/file; umount /mnt")
            failed = nvme_guest.run("echo to stderr >&2; exit 7")
            assert (failed.status, failed.output) == (7, "to stderr\\n")
            with pytest.raises(GuestError, match="ended with status 7: to stderr"):
                nvme_guest.check("echo to stderr >&2; exit 7")
            with pytest.raises(GuestTimeout):
                nvme_guest.expect("never", timeout=0.1)
            assert "hello" in nvme_guest.console
            assert b"hello\\n" in nvme_guest.disk.read_bytes()
            assert nvme_guest.check("nproc") == "2\\n"
            expect(op="write", nsid=1)
            expect(op="flush")
            assert all(command.status == 0 for command in trace.commands("write"))

        def test_faults(nvme_guest, faults, trace):
            assert trace.commands("write") == []
            fault = faults.add(Fault(match={"opcode": "read"}, do={"status": "unrecovered_read_error", "dnr": True}))
            assert nvme_guest.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct").status == 1
            nvme_guest.expect("critical medium error, dev nvme0n1")
            assert any("critical medium error" in message for message in nvme_guest.kernel_messages)
            assert fault.hits == len(trace.commands("read")) == 1
            assert nvme_guest.control.call("status")["faults"] == 1

        def test_that_fails(nvme_guest, trace):
            assert nvme_guest.control.call("status")["faults"] == 0
            nvme_guest.check("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 skip=3 iflag=direct")
            assert 0

        def test_a_crash(nvme_guest):
            with pytest.raises(GuestError, match="the guest's kernel says: Kernel panic"):
                nvme_guest.run("echo c >/proc/sysrq-trigger")
    """)
    result = pytester.runpytest("--nvmeemu-require-guest")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_that_fails*",
            "*nvmeemu: the last commands*",
            "*SQ * Read nsid=1 slba=24 nlb=8: Success*",
            "*nvmeemu: guest's console, the last lines*",
            "*critical medium error, dev nvme0n1*",
            "*nvmeemu: server.log, the last lines*",
            "*nvmeemu: files*",
            "*: console.log, nvme.trace, qemu-command, qemu.log, server.log",
        ]
    )
    assert os.listdir(pytester.path / "t") == []
