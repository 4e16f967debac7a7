"""docs/extend.md does what it says: its files are loaded, in this process and by a server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvmeemu import spec
from nvmeemu.app.control import Control
from nvmeemu.backend import open_backend
from nvmeemu.faults import Fault, FaultError, Faults
from nvmeemu.plugin import Plugin, PluginError, load
from nvmeemu.plugins import ocp
from nvmeemu.spec import AdminOpcode, Command, Effect, LogId, SetFeatures, words
from nvmeemu.testing import Bench, CommandError
from server.guest import Guest
from server.process import NVMEEMU, Served, run

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.M | re.S))
pytest_plugins = ["pytester"]
HELLO, VISITS, MOOD = 0xC2, 0xC7, 0xD7


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def bench(files: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        for name in FILES:
            stack.enter_context(load(files / name).installed())
        bench = Bench()
        bench.driver.enable()
        bench.driver.create_queues()
        yield bench


def hello(bench: Bench, length: int = 64) -> tuple[int, bytes]:
    place = bench.driver.alloc(4096)
    command = Command(opcode=HELLO, prp1=place)
    command.cdw10 = length
    completion = bench.driver.succeed(bench.driver.admin, command)
    return completion.dw0, bench.read_memory(place, length)


def test_a_command_is_run_and_offered(bench: Bench) -> None:
    assert hello(bench) == (12, b"hello, world".ljust(64, b"\0"))
    log = bench.driver.get_log(LogId.COMMAND_EFFECTS, 4096)
    assert int.from_bytes(log[4 * HELLO : 4 * HELLO + 4], "little") == Effect.CSUPP
    entry = bytes(Command(opcode=HELLO))[:40] + (64).to_bytes(4, "little") + bytes(20)
    assert words.command(0, entry) == "Hello length=64"


def test_a_fault_knows_a_command_and_an_action_by_name(bench: Bench) -> None:
    faults = Faults(bench.controller)
    fault = faults.add(Fault({"opcode": "hello"}, do={"status": "write_fault"}, when={"nth": 1}))
    with pytest.raises(CommandError):
        hello(bench)
    assert fault.hits == 1
    assert "hello" in str(fault).casefold()
    Fault({"opcode": "identify"}, "completion", "twice")


def test_a_log_page_is_listed_and_read(bench: Bench) -> None:
    bench.driver.set_feature(MOOD, 7)
    assert bench.driver.get_log(VISITS, 512)[:4] == b"\7\0\0\0"
    supported = bench.driver.get_log(LogId.SUPPORTED_LOG_PAGES, 1024)
    assert supported[4 * VISITS] & 1


def test_a_saved_value_is_back_after_a_reset(bench: Bench) -> None:
    driver = bench.driver
    driver.succeed(driver.admin, SetFeatures(opcode=AdminOpcode.SET_FEATURES, fid=MOOD, sv=True, cdw11=5))
    driver.set_feature(MOOD, 6)
    assert driver.get_feature(MOOD) == 6
    driver.disable()
    driver.enable()
    assert driver.get_feature(MOOD) == 5


def test_a_disk_is_what_its_plugin_says(bench: Bench) -> None:
    backend = open_backend("pattern:AB")
    bench = Bench(backend)
    bench.driver.enable()
    bench.driver.create_queues()
    bench.driver.write(0, bytes(512))
    assert bench.driver.read(0, 1) == b"\xab" * 512
    assert backend.identity == "pattern:AB"


def test_nothing_is_left_when_it_is_gone(files: Path) -> None:
    for name in FILES:
        with load(files / name).installed():
            pass
    bench = Bench()
    bench.driver.enable()
    with pytest.raises(CommandError):
        hello(bench)
    with pytest.raises(CommandError):
        bench.driver.get_log(VISITS, 512)
    with pytest.raises(CommandError):
        bench.driver.get_feature(MOOD)
    with pytest.raises(FaultError):
        Fault({"opcode": "hello"}, do="drop")
    with pytest.raises(FaultError):
        Fault(do="twice")
    assert HELLO not in spec.ADMIN_COMMANDS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "it has 0 Plugin objects: make one, plugin = Plugin(NAME)"),
        ("\n1 / 0", ":2: ZeroDivisionError: division by zero"),
        ("def f(:", ":1: SyntaxError: "),
        ("import nvmeemu_is_not_here", ":1: ModuleNotFoundError: No module named 'nvmeemu_is_not_here'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(PluginError) as error:
        load(tmp_path / "bad.py")
    assert str(error.value).startswith(f"plugin {tmp_path / 'bad.py'}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_taken_is_refused_and_nothing_stays(files: Path) -> None:
    first, second = load(files / "hello.py"), load(files / "hello.py")
    with first.installed(), pytest.raises(PluginError, match=r"plugin hello: HELLO \(0xc2\): there is HELLO"):
        second.install()
    with second.installed():
        pass
    plugin = Plugin("disk")
    plugin.backend("mem")(lambda text: open_backend("mem:1M"))
    with pytest.raises(PluginError, match="there is one already"):
        plugin.install()


@pytest.mark.long
def test_a_server_and_a_trace_have_it(files: Path) -> None:
    plugins = [word for name in FILES for word in ("--plugin", str(files / name))]
    control, trace = files / "c", files / "t.trace"
    served = Served(str(files / "s"), "--disk", "pattern:5A", "--control", control, "--trace", trace, *plugins)
    try:
        guest = Guest(served.path)
        with Control(control) as client:
            assert guest.read(8, 1) == b"\x5a" * 512
            command = Command(opcode=HELLO, prp1=guest.alloc(4096))
            command.cdw10 = 16
            assert guest.succeed(guest.admin, command).dw0 == 12
            added = client.call("fault.add", match={"opcode": "hello"}, do="twice", at="completion")
            assert added["id"] == 1
        guest.leave()
        assert served.stop() == 0
    finally:
        served.close()
    shown = run("show", str(trace), command=(NVMEEMU, "trace", *plugins)).stdout
    assert "Hello length=16" in shown
    assert "admin opcode C2h" in run("show", str(trace), command=(NVMEEMU, "trace")).stdout


@pytest.mark.long
def test_the_command_line_says_what_a_plugin_adds(files: Path) -> None:
    path = files / "hello.py"
    shown = run("serve", "--plugin", str(path), "--help", command=(NVMEEMU,))
    assert shown.returncode == 0
    assert shown.stdout.rstrip().endswith("hello: admin command Hello (C2h)")
    for words_, said in (
        (("--plugin", "/none.py"), "nvmeemu serve: plugin /none.py: there is no such file"),
        (("--plugin", str(path), "--plugin", str(path)), f"nvmeemu serve: --plugin {path}: it is given twice"),
    ):
        refused: subprocess.CompletedProcess[str] = run("serve", *words_, command=(NVMEEMU,))
        assert refused.returncode == 2
        assert refused.stderr.startswith(said)
        assert refused.stderr.count("\n") == 1


@pytest.mark.long
def test_a_test_may_ask_for_plugins(pytester: pytest.Pytester, files: Path) -> None:
    pytester.makeconftest("")
    pytester.makepyfile(
        f"""
        import pytest
        from nvmeemu.spec import Command

        def hello(driver):
            return driver.succeed(driver.admin, Command(opcode=0xC2, prp1=driver.alloc(4096))).dw0

        DROP = {{"match": {{"opcode": "hello"}}, "do": "drop", "when": {{"nth": 2}}}}

        @pytest.mark.nvmeemu(plugins=[{str(files / "hello.py")!r}], faults=[DROP])
        def test_here(nvme):
            assert hello(nvme.driver) == 12

        @pytest.mark.nvmeemu(plugins=[{str(files / "hello.py")!r}])
        def test_there(nvme_server, expect):
            assert hello(nvme_server.driver) == 12
            expect("hello")

        def test_gone(nvme):
            with pytest.raises(Exception):
                hello(nvme.driver)

        @pytest.mark.nvmeemu(plugins=["/none.py"])
        def test_missing(nvme):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*plugin /none.py: there is no such file*"])


@pytest.mark.long
def test_what_each_controller_has_of_its_own_comes_with_each(pytester: pytest.Pytester) -> None:
    """Here and in a server: OCP's error injection, as a plugin that a user might have."""
    pytester.makepyfile(
        f"""
        import pytest
        from nvmeemu.testing import CommandError

        pytestmark = pytest.mark.nvmeemu(plugins=[{ocp.__file__!r}])

        def test_here(nvme):
            assert nvme.driver.get_feature(0xC0) == 0

        def test_there(nvme_server):
            assert nvme_server.driver.get_feature(0xC0) == 0

        @pytest.mark.nvmeemu(plugins=[])
        def test_without(nvme):
            with pytest.raises(CommandError):
                nvme.driver.get_feature(0xC0)
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)
