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
    pytester.makepyfile(r"""
        import pytest
        from nvmeemu.faults import Fault
        from nvmeemu.guest.errors import GuestError, GuestTimeout

        @pytest.fixture(scope="module")
        def nvme_guest(nvme_boot):
            slow = Fault(match={"opcode": "identify"}, do={"delay": "1ms"}, when={"times": 1})
            with nvme_boot(size="64M", smp=2, append="nvme_core.io_timeout=20", faults=[slow]) as guest:
                assert repr(guest).startswith("<NvmeGuest: Linux "), guest
                yield guest
                assert repr(guest).startswith("<NvmeGuest: ")

        def test_faults_before_the_boot(nvme_guest):
            (fault,) = nvme_guest.faults
            assert (fault.hits, fault.seen > 1) == (1, True)
            assert "match.opcode=identify" in repr(fault) and repr(fault).endswith("hits 1>"), fault

        def test_informational_messages(nvme_guest):
            nvme_guest.expect(r"nvme nvme0: pci function \S+$")  # of the boot
            assert any("nvme nvme0: pci function" in message for message in nvme_guest.kernel_messages)
            nvme_guest.check("echo '<6>nothing is wrong' >/dev/kmsg")
            nvme_guest.expect("nothing is wrong")
            assert nvme_guest.kernel_messages[-1] == "nothing is wrong"

        def test_a_command_that_takes_too_long_is_killed(nvme_guest, faults):
            with pytest.raises(GuestTimeout, match="the end of 'sleep 1000.*' did not come in 1 s; it was killed"):
                nvme_guest.run("sleep 1000 | sleep 1001", timeout=1)
            assert nvme_guest.run("pidof sleep").status == 1
            never = faults.add(Fault(match={"opcode": "read"}, do="drop"))  # it hangs in the kernel
            with pytest.raises(GuestTimeout, match="it was killed"):
                nvme_guest.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 skip=5 iflag=direct", timeout=2)
            assert nvme_guest.check("echo still here") == "still here\n"
            nvme_guest.check("pidof dd")
            faults.remove(never)
            nvme_guest.check("while pidof dd; do sleep 0.1; done")  # the driver has tried it again

        def test_files(nvme_guest, tmp_path):
            data = bytes(range(256)) * 100
            program = tmp_path / "a program"
            program.write_text('#!/bin/sh\necho "$1" && wc -c <"$2"\n' + "# " + 20_000 * "x")
            program.chmod(0o755)
            nvme_guest.put(program, "/tmp/it's a program")
            nvme_guest.put(data, "/tmp/data")
            assert nvme_guest.check("'/tmp/it'\"'\"'s a program' hello /tmp/data") == "hello\n25600\n"
            nvme_guest.check("dd if=/dev/zero of=/tmp/data bs=1 count=1 seek=25600 2>/dev/null")
            assert nvme_guest.get("/tmp/data") == data + bytes(1)
            nvme_guest.put(b"", "/tmp/data")
            assert nvme_guest.get("/tmp/data") == b""
            with pytest.raises(GuestError, match="in the guest: .* /tmp/nothing: no such file"):
                nvme_guest.get("/tmp/nothing")
            with pytest.raises(GuestError, match="in the guest: .* /nowhere/x: nonexistent directory"):
                nvme_guest.put(b"x", "/nowhere/x")
            assert nvme_guest.run("echo " + 30_000 * "y").output == 30_000 * "y" + "\n"
            left = [name for name in nvme_guest.check("ls -1 /tmp").splitlines() if not name.startswith("command-")]
            assert left == ["data", "it's a program"]

        def test_programs(nvme_guest):
            for program in ("busybox", "sh", "mkfs.ext4", "e2fsck", "sfdisk", "nvme"):
                nvme_guest.check(f"command -v {program}")
            with pytest.raises(GuestError, match="status 127: .*docs/pytest.md lists the guest's programs"):
                nvme_guest.check("fio --version")

        def test_commands(nvme_guest, expect, trace):
            made = nvme_guest.run("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt")
            assert (made.status, made.output) == (0, "")
            nvme_guest.check("echo hello >/mnt/file; umount /mnt")
            failed = nvme_guest.run("echo to stderr >&2; exit 7")
            assert (failed.status, failed.output) == (7, "to stderr\n")
            with pytest.raises(GuestError, match="ended with status 7: to stderr"):
                nvme_guest.check("echo to stderr >&2; exit 7")
            with pytest.raises(GuestTimeout):
                nvme_guest.expect("never", timeout=0.1)
            assert "hello" in nvme_guest.console
            assert b"hello\n" in nvme_guest.disk.read_bytes()
            assert nvme_guest.check("nproc") == "2\n"
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

        def test_that_fails(nvme_guest, trace, expect):
            assert nvme_guest.control.call("status")["faults"] == 0
            nvme_guest.check("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 skip=3 iflag=direct")
            expect(op="flush", timeout=0)

        def test_a_crash(nvme_guest):
            with pytest.raises(GuestError, match="the guest's kernel says: Kernel panic"):
                nvme_guest.run("echo c >/proc/sysrq-trigger")
    """)
    result = pytester.runpytest("--nvmeemu-require-guest")
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_that_fails*",
            "*NothingSent: the host has sent no flush in 0 s; its last commands:*",
            "*SQ * Read nsid=1 slba=24 nlb=8: Success*",
            "*nvmeemu: guest's console, the last lines*",
            "*critical medium error, dev nvme0n1*",
            "*nvmeemu: server.log, the last lines*",
            "*nvmeemu: files*",
            "*: console.log, nvme.trace, qemu-command, qemu.log, server.log",
        ]
    )
    assert result.stdout.str().count("Read nsid=1 slba=24 nlb=8: Success") == 1
    assert os.listdir(pytester.path / "t") == []


def test_a_drive_file(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("t")))
    pytester.makefile(
        ".toml",
        lab="""
        [identity]
        serial = "FROM A FILE"
        [[namespace]]
        disk = "disk.img"
        create = true
        size = "16M"
        block_size = 4096
        [[namespace]]
        disk = "mem:8M"
        """,
    )
    pytester.makepyfile(r"""
        import pytest

        @pytest.mark.nvmeemu(drive="lab.toml")
        def test_it(nvme_guest, expect):
            assert nvme_guest.check("cat /sys/block/nvme0n1/device/serial").split() == ["FROM", "A", "FILE"]
            nvme_guest.check("while [ ! -e /dev/nvme0n2 ]; do sleep 0.1; done")
            sizes = "grep -h . /sys/block/nvme0n*/size /sys/block/nvme0n*/queue/logical_block_size"
            assert sorted(nvme_guest.check(sizes).split()) == ["16384", "32768", "4096", "512"]
            assert nvme_guest.disk.stat().st_size == 16 << 20
            expect(op="read")
    """)
    result = pytester.runpytest_subprocess("--nvmeemu-require-guest", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
