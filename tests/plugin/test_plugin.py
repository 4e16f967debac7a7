"""The pytest plugin, as its users meet it: through pytest. What needs no guest; test_guests.py has the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nvmeemu.guest import initramfs, libraries
from nvmeemu.guest.errors import GuestError
from nvmeemu.pytest_plugin import live, parts

pytestmark = pytest.mark.long

pytest_plugins = ["pytester"]
assert live  # imported already, or each run in this process would import it all again

OLD_QEMU = """#!/bin/sh
case "$*" in *--version*) echo "QEMU emulator version 9.2.1" ;; *) echo "no such device" >&2; exit 1 ;; esac
"""
NEW_QEMU = """#!/bin/sh
echo "vfio-user-pci options:"
"""


@pytest.fixture(autouse=True)
def own_folder(pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of ours is inherited by the runs, and what they leave behind is seen."""
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")  # it takes longer than most of the tests here


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither QEMU on PATH nor anything of set-up's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def left(tmp_path: Path) -> list[str]:
    """What is left of drives."""
    return [path.name for path in (tmp_path / "t").glob("nvmeemu-*")]


# --- the fixtures


def test_a_controller_in_this_process(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        def test_it(nvme):
            nvme.driver.write(slba=3, data=b"x" * 512)
            assert nvme.driver.read(slba=3, blocks=1) == b"x" * 512

        @pytest.mark.nvmeemu(size="1M", block_size=4096)
        def test_options(nvme):
            assert nvme.driver.identify(0, nsid=1)[:2] == (256).to_bytes(2, "little")
    """)
    pytester.runpytest().assert_outcomes(passed=2)


def test_a_server(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.nvmeemu(serve=["--serial", "MINE"])
        def test_it(nvme_server):
            nvme_server.driver.write(slba=3, data=b"x" * 512)
            assert nvme_server.driver.read(slba=3, blocks=1) == b"x" * 512
            assert nvme_server.disk.read_bytes()[3 * 512:][:512] == b"x" * 512
            assert nvme_server.driver.identify(1)[4:8] == b"MINE"
            assert "attached" in nvme_server.log
    """)
    pytester.runpytest().assert_outcomes(passed=1)
    assert left(tmp_path) == []


@pytest.mark.parametrize("fixture", ["nvme", "nvme_server"])
def test_faults_that_are_there_before_the_host(pytester: pytest.Pytester, fixture: str) -> None:
    pytester.makepyfile(f"""
        import pytest
        from nvmeemu.faults import Fault

        @pytest.mark.nvmeemu(faults=[
            Fault(match={{"opcode": "create_sq"}}, at="completion", do={{"set": {{"dw0": 7}}}}),
            {{"match": {{"opcode": "flush"}}, "do": "drop"}},
        ])
        @pytest.mark.parametrize("number", range(2))  # the same marker, another drive
        def test_it({fixture}, number, faults):
            assert {fixture}.driver.queues
            first, second = faults
            assert (first.hits, second.hits) == (1, 0)
            assert "create_sq" in repr(first) and "flush" in repr(second)
            faults.clear()
            assert list(faults) == []
    """)
    pytester.runpytest().assert_outcomes(passed=2)


def test_several_tests_share_a_server_if_they_want(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """The nearest marker wins; a fixture of the same name and a wider scope takes the plugin's place."""
    pytester.makepyfile("""
        import pytest

        @pytest.fixture(scope="module")
        def nvme_server(nvme_serve):
            with nvme_serve(size="1M") as server:
                yield server

        def test_one(nvme_server):
            nvme_server.driver.write(slba=3, data=b"x" * 512)

        def test_two(nvme_server, expect):
            assert nvme_server.driver.read(slba=3, blocks=1) == b"x" * 512
            expect(op="read", timeout=5)
            with pytest.raises(AssertionError, match="has sent no write"):
                expect(op="write", timeout=0)  # that was another test's
    """)
    pytester.runpytest().assert_outcomes(passed=2)
    assert left(tmp_path) == []


def test_the_boot_of_a_guest_belongs_to_its_test_unless_several_share_it(pytester: pytest.Pytester) -> None:
    """The guest here is none: a driver that sends its commands when it is started does as well."""
    pytester.makeconftest("from nvmeemu.pytest_plugin.live import Live; Live.boot = Live.bench")
    pytester.makepyfile("""
        import pytest

        @pytest.fixture(scope="module")
        def shared(nvme_boot):
            with nvme_boot() as guest:
                yield guest

        class TestOwn:
            def test_it(self, nvme_guest, trace):
                assert len(trace.commands("create_sq")) == 1

        class TestShared:
            @pytest.fixture
            def nvme_guest(self, shared):
                return shared

            def test_it(self, nvme_guest, trace):
                assert trace.commands("create_sq") == []
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_several_drives_are_told_apart(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_faults(nvme, nvme_server, faults):
            pass

        def test_by_name(nvme, nvme_server):
            nvme.driver.read(slba=1, blocks=1)
            assert [len(drive.trace.commands("read")) for drive in (nvme, nvme_server)] == [1, 0]
    """)
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["faults of which drive? The test has nvme_server, nvme: write *nvme_server.faults"])


def test_options_that_there_are_not(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.nvmeemu(append="quiet")
        def test_it(nvme):
            pass
    """)
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nvme takes no append=: there is size, block_size, faults, queues, mqes, *"])


@pytest.mark.parametrize(
    ("fixture", "options", "said"),
    [
        ("nvme", "size='12 parsecs'", "size: bad size '12 parsecs'*"),
        ("nvme", "faults={'do': 'drop'}", "faults={'do': 'drop'}: give a list of faults"),
        ("nvme_server", "faults=[{'do': 'explode'}]", "faults: *'explode'*"),
        ("nvme", "size=64", "size=64 is not text*"),
        ("nvme", "block_size=777", "block_size=777 is neither 512 nor 4096"),
        ("nvme", "mqes=1", "mqes=1 is not a number from 2 to 65536"),
        ("nvme_server", "aerl='8'", "aerl='8' is not a number from 1 to 256"),
        ("nvme", "mpsmin=2, mpsmax=1", "there is no such controller: mpsmin 2 is above mpsmax 1"),
        ("nvme_guest", "mpsmin=1, mdts=9", "there is no such controller: mdts 9 is too large for pages of 8 KiB*"),
        ("nvme", "'64M'", "@pytest.mark.nvmeemu takes keywords, not '64M'*"),
        ("nvme_server", "serve='--ocp'", "serve='--ocp' is one text: give a list of words"),
        ("nvme_guest", "qemu='-s'", "qemu='-s' is one text: give a list of words"),
    ],
)
def test_options_that_cannot_be_are_one_line(pytester: pytest.Pytester, fixture: str, options: str, said: str) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.nvmeemu({options})
        def test_it({fixture}):
            pass
    """)
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*.py:[0-9]*")
    result.stdout.no_fnmatch_line("During handling of*")


# --- a server that fails


def test_a_server_that_does_not_start_says_why(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.nvmeemu(serve=["--queues", "99"])
        def test_it(nvme_server):
            pass
    """)
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*ServerEnded: nvmeemu serve ended with status 2: *'99' is not a number from 1 to 64*"]
    )
    assert left(tmp_path) == []


def test_a_server_that_dies_fails_the_test(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile("""
        def test_it(nvme_server, faults):
            nvme_server.driver.read(slba=7, blocks=1)
            list(nvme_server.trace)
            faults.add({"do": "drop", "match": {"opcode": "flush"}})
            nvme_server.process.kill()
    """)
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*nvmeemu serve ended with status -9*",
            "*the last commands*",
            "*SQ 1*Read nsid=1 slba=7 nlb=1: Success*",
            "*nvmeemu serve, the last lines*",
            "*controller enabled*",
            "*nvmeemu: files*",
            "*nvme.trace, server.log*",
        ]
    )
    assert "Unreachable" not in result.stdout.str()
    assert left(tmp_path) == []


def test_a_failed_test_shows_what_the_server_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_it(nvme_server):
            nvme_server.driver.read(slba=7, blocks=1)
            assert 0

        def test_other():
            assert 0
    """)
    result = pytester.runpytest()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*the last commands*",
            "*SQ 1*Read nsid=1 slba=7 nlb=1: Success*",
            "*nvmeemu serve, the last lines*",
            "*controller enabled*",
            "*nvmeemu: files*",
            "*nvme.trace*",
            "*test_other*",
        ]
    )
    assert result.stdout.str().count("nvmeemu serve, the last lines") == 1


def test_a_traceback_ends_in_the_test_and_what_is_told_is_told_once(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from nvmeemu.testing import CommandError

        def helper(nvme):
            nvme.driver.read(slba=1 << 40, blocks=1)

        def test_a_command(nvme):
            nvme.driver.read(slba=7, blocks=1)
            helper(nvme)

        def test_a_missing_command(nvme, expect):
            nvme.driver.read(slba=8, blocks=1)
            expect(op="flush", nsid=1)

        def test_an_answer(nvme_server):
            list(nvme_server.trace)
            assert nvme_server.faults.add({"do": "explode"}) == 1

        def test_a_status(nvme):
            nvme.driver.read(slba=9, blocks=1)
            assert nvme.trace.commands("read")[0].status != 0

        def test_our_mistake(nvme):
            nvme.driver.read(slba="7", blocks=1)
    """)
    result = pytester.runpytest()
    result.assert_outcomes(failed=5)
    said = result.stdout.str()
    places = re.findall(r"^\S+\.py:\d+: .*", said, re.MULTILINE)
    ours = [line for line in places if "nvmeemu/" in line]
    assert len(places) - len(ours) == 6  # the helper's, too
    assert ours  # of our mistake
    result.stdout.fnmatch_lines(
        [
            "*CommandError: READ *LBA_OUT_OF_RANGE*",
            "*NothingSent: the host has sent no flush with nsid=1 *",
            "*FaultError: *explode*",
            "E * assert <Status.SUCCESS: 0> != 0",
        ]
    )
    for place in (7, 8):
        assert len([line for line in said.splitlines() if f"Read nsid=1 slba={place} nlb=1: Success" in line]) == 1
    whole = pytester.runpytest("--full-trace", "-k", "a_missing_command").stdout
    whole.fnmatch_lines(["*nvmeemu/pytest_plugin/commands.py*NothingSent"])


# --- what is missing


GUEST_TEST = """
    def test_it(nvme_guest):
        pass
"""


@pytest.mark.usefixtures("bare_machine")
def test_without_qemu_a_test_is_skipped_or_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(GUEST_TEST)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*nvmeemu: no qemu-system-x86_64: run scripts/setup.sh (docs/pytest.md*"])
    result = pytester.runpytest("--nvmeemu-require-guest")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nvmeemu: no qemu-system-x86_64: *"])


@pytest.mark.parametrize(("module", "package"), libraries.WANTED.items())
def test_without_a_library_of_the_extra_a_guest_is_skipped_and_the_rest_works(
    pytester: pytest.Pytester, module: str, package: str
) -> None:
    pytester.makeconftest(f"import sys; sys.modules[{module!r}] = None")
    pytester.makepyfile(GUEST_TEST + "def test_another(nvme): pass")
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1, passed=1)
    missing = f"the Python package {package} is missing: pip install 'nvmeemu[[]guest]'"
    result.stdout.fnmatch_lines([f"SKIPPED*nvmeemu: {missing} (docs/pytest.md*"])


@pytest.mark.usefixtures("bare_machine")
def test_an_old_qemu_is_no_qemu(pytester: pytest.Pytester, tmp_path: Path) -> None:
    program(tmp_path / "qemu-system-x86_64", OLD_QEMU)
    pytester.makepyfile(GUEST_TEST)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*is version 9.2.1 without vfio-user-pci: QEMU 10.1 or newer is needed*"])


@pytest.mark.usefixtures("bare_machine")
def test_a_kernel_and_programs_are_needed(pytester: pytest.Pytester, tmp_path: Path) -> None:
    program(tmp_path / "qemu-system-x86_64", NEW_QEMU)
    pytester.makepyfile(GUEST_TEST)
    result = pytester.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*nvmeemu/linux/trixie-amd64/vmlinuz is missing: run scripts/setup.sh*"])


@pytest.mark.usefixtures("bare_machine")
def test_the_initramfs_can_be_made_of_the_hosts_programs(tmp_path: Path) -> None:
    """A machine without set-up: its own QEMU, the user's kernel, busybox and a few more from the distribution."""
    program(tmp_path / "qemu-system-x86_64", NEW_QEMU)
    kernel = tmp_path / "bzImage"
    kernel.touch()
    host = tmp_path / "host"
    wanted = parts.Wanted(kernel=kernel, accel="tcg")
    with pytest.raises(GuestError, match=f"busybox is in no folder of {host}"):
        parts.machine(wanted, tmp_path, host)
    for name in ("bin/busybox", *(f"usr/sbin/{name}" for name in initramfs.PROGRAMS)):
        program(host / name, "#!/bin/sh\n")
    made = parts.machine(wanted, tmp_path, host)
    assert (made.kernel, made.initrd) == (kernel, tmp_path / "initrd")
    assert b"@@ready" in (tmp_path / "initrd").read_bytes()


@pytest.mark.usefixtures("bare_machine")
def test_what_is_named_must_be_there(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(GUEST_TEST)
    pytester.makeini("[pytest]\nnvmeemu_kernel = build/bzImage")
    for arguments, name in (((), "build/bzImage"), (("--nvmeemu-kernel", "mine"), "mine")):
        result = pytester.runpytest(*arguments)
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines([f"nvmeemu: kernel: {pytester.path}/{name}: no such file"])


def test_without_libvfio_user_a_server_is_skipped(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from nvmeemu.vfio import binding; binding._missing = 'built without libvfio-user'")
    pytester.makepyfile("""
        def test_server(nvme_server):
            pass

        def test_guest(nvme_guest):
            pass
    """)
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*(built without libvfio-user)*(docs/pytest.md*"])


# --- beside other tests


def test_with_xdist_each_worker_has_its_own(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(nvme_server, number, expect):
            nvme_server.driver.write(slba=number, data=bytes([number]) * 512)
            assert nvme_server.driver.read(slba=number, blocks=1) == bytes([number]) * 512
            expect(op="write", slba=number)
            assert number < 3
    """)
    result = pytester.runpytest_subprocess("-n", "2", "--dist", "each")
    result.assert_outcomes(passed=6, failed=2)
    result.stdout.fnmatch_lines(["*nvmeemu serve, the last lines*"])
    assert left(tmp_path) == []


def test_it_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    """The plugin itself is all that is loaded, before any test uses it."""
    pytester.makepyfile("""
        import sys

        def test_it():
            ours = {name for name in sys.modules if name.partition(".")[0] == "nvmeemu"}
            assert ours == {"nvmeemu", "nvmeemu.pytest_plugin"}
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_nothing_else_needs_pytest() -> None:
    """Whoever serves has not installed it."""
    program = (
        "import sys; sys.modules['pytest'] = sys.modules['_pytest'] = None\n"
        "import nvmeemu.app.cli, nvmeemu.app.serve, nvmeemu.app.run, nvmeemu.testing, nvmeemu.guest.guest"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
