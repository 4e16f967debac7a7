"""docs/extend.md does what it says: its files are loaded, in this process and by a server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvmeemu import spec
from nvmeemu.app.control import Control
from nvmeemu.backend import BACKENDS, open_backend
from nvmeemu.faults import Fault, FaultError, Faults
from nvmeemu.plugin import Plugin, PluginError, load
from nvmeemu.plugins import INSTALLED, ocp
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
    assert int.from_bytes(log[4 * HELLO : 4 * HELLO + 4], "little") == Effect.CSUPP | Effect.OF_CONTROLLER
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


@pytest.mark.kills("rows-of-a-plugin-stay")
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


@pytest.mark.kills("a-plugin-ends-the-process")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "it has 0 Plugin objects: make one, plugin = Plugin(NAME)"),
        ("\n1 / 0", ":2: ZeroDivisionError: division by zero"),
        ("def f(:", ":1: SyntaxError: "),
        ("import nvmeemu_is_not_here", ":1: ModuleNotFoundError: No module named 'nvmeemu_is_not_here'"),
        ("import sys\nsys.exit(0)", ":2: it would end the process: no sys.exit there"),
        ("# a\n\0", ":2: "),
        ("import bad_helper", ":1: SyntaxError: "),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    (tmp_path / "bad_helper.py").write_text("\n\ndef f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for path in (tmp_path / "bad.py", Path("bad.py"), Path("x") / ".." / "bad.py"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(PluginError) as error:
            load(path)
        assert str(error.value).startswith(f"plugin {path}")
        assert said in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.kills("a-plugin-takes-the-numbers-of-the-specification")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Plugin(3)", "Plugin: 3 is no name: give a text of letters, digits, spaces, - and _"),
        ("plugin.admin_command(f)", "admin_command(f): give a class of Command: @plugin.admin_command(Hello)"),
        ("plugin.admin_command(Bare)", "admin_command(Bare): OPCODE is 194, which has no name: make it a member of"),
        ("plugin.io_command(Nothing)", "io_command(Nothing): OPCODE is None, which has no name: make it a member"),
        ("plugin.admin_command(Low)", "admin_command(Low): 0x81 is no vendor's: give a number from C0h to FFh"),
        ("plugin.io_command(Lower)", "io_command(Lower): 0x7d is no vendor's: give a number from 80h to FFh"),
        ("plugin.io_command(Low, changes=1)", "io_command(Low): changes=1: give members of Effect"),
        ("plugin.io_command(Low)(3)", "3 cannot be called: give a function"),
        ("plugin.log_page('c7', 'x')", "log_page('x'): 'c7' is no number: give one from C0h to FFh"),
        ("plugin.log_page(True, 'x')", "log_page('x'): True is no number: give one from C0h to FFh"),
        ("plugin.log_page(2, 'x')", "log_page('x'): 0x2 is no vendor's: give a number from C0h to FFh"),
        ("plugin.log_page(0x1C0, 'x')", "log_page('x'): 0x1c0 is no vendor's: give a number from C0h to FFh"),
        ("plugin.log_page(0xC7, '')", "log_page: '' is no name: give a text of letters, digits, spaces, - and _"),
        ("plugin.feature(5, 'f')", "feature(5): give a Feature, for example feature(Feature(0xD7), 'mood')"),
        ("plugin.feature(Feature(5), 'f')", "feature('f'): 0x5 is no vendor's: give a number from C0h to FFh"),
        ("plugin.fault_action(int)", "fault_action(int): give a class of Action"),
        ("plugin.fault_action(Unnamed)", "fault_action(Unnamed): name: None is no name: give a text of letters"),
        ("plugin.backend(f)", "backend: f is no name: give a text of letters, digits, spaces, - and _"),
        ("plugin.for_each_controller(1)", "1 cannot be called: give a function"),
    ],
)
def test_what_cannot_be_added_is_refused_where_the_file_says_it(tmp_path: Path, line: str, said: str) -> None:
    text = """
from enum import IntEnum
from nvmeemu.plugin import Action, Command, Feature, Plugin
plugin = Plugin("x")
class Opcode(IntEnum):
    LOW = 0x81
    LOWER = 0x7D
class Bare(Command):
    OPCODE = 0xC2
class Nothing(Command): ...
class Low(Command):
    OPCODE = Opcode.LOW
class Lower(Command):
    OPCODE = Opcode.LOWER
class Unnamed(Action): ...
def f(request): ...
"""
    (tmp_path / "bad.py").write_text(text + line)
    with pytest.raises(PluginError) as error:
        load(tmp_path / "bad.py")
    assert str(error.value).startswith(f"plugin {tmp_path / 'bad.py'}:{text.count(chr(10)) + 1}: {said}")


def test_two_files_of_the_same_name_are_two_modules(tmp_path: Path) -> None:
    """A dataclass looks its module up by name, at any time."""
    text = "from nvmeemu.plugin import Plugin\nplugin = Plugin('{0}')\nclass {0}: ..."
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my.py").write_text(text.format(name))
    plugins = [load(tmp_path / name / "my.py") for name in ("a", "b")]
    found = [one for one in list(sys.modules.values()) if getattr(one, "plugin", None) in plugins]
    assert [(one.plugin.name, hasattr(one, one.plugin.name)) for one in found] == [("a", True), ("b", True)]


def test_whatever_stops_an_installation_nothing_of_it_stays(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(INSTALLED)

    def fail(row: object) -> None:
        raise RuntimeError("no")

    more = load(files / "more.py")
    with monkeypatch.context() as changed:
        changed.setattr(BACKENDS, "add", fail)
        with pytest.raises(RuntimeError):
            more.install()
    assert len(INSTALLED) == before
    with load(files / "more.py").installed():
        assert len(INSTALLED) == before + 1
    assert len(INSTALLED) == before


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


DRIVE = "plugins = {}\n\n[[namespace]]\ndisk = '{}'\n[[controller]]\nsocket = '{}.sock'\n"


def drive(files: Path, name: str, plugins: list[str], disk: str = "mem:1M") -> Path:
    path = files / f"{name}.toml"
    path.write_text(DRIVE.format(plugins, disk, name))
    return path


@pytest.mark.long
def test_a_drive_file_names_its_plugins(files: Path) -> None:
    """Relative to its folder; its disks may be of their kinds. Several drives have the same, in whatever order."""
    first = drive(files, "a", ["more.py", "hello.py"], "pattern:5A")
    second = drive(files, "b", ["./hello.py", "more.py"])
    served = Served(
        str(files / "a.sock"), "--drive", first, "--drive", second, "--plugin", files / "hello.py", drives=2
    )
    try:
        guest = Guest(served.path)
        assert guest.read(8, 1) == b"\x5a" * 512
        command = Command(opcode=HELLO, prp1=guest.alloc(4096))
        command.cdw10 = 16
        assert guest.succeed(guest.admin, command).dw0 == 12
        guest.leave()
        assert served.stop() == 0
    finally:
        served.close()


@pytest.mark.long
@pytest.mark.kills("drives-with-other-plugins-share-a-process")
def test_plugins_of_a_drive_file_that_cannot_be_are_refused(files: Path) -> None:
    gone = str(files / "gone.img")  # a drive that is not refused for its plugins ends at once, too
    first, same = drive(files, "a", ["hello.py"], gone), drive(files, "b", ["hello.py", "./hello.py"])
    other, none = drive(files, "c", ["more.py"], gone), drive(files, "d", [], gone)
    bad, missing, text = drive(files, "e", ["bad.py"]), drive(files, "f", ["none.py"]), files / "g.toml"
    (files / "bad.py").write_text("\n1 / 0")
    text.write_text("plugins = 'hello.py'\n[[namespace]]\ndisk = 'mem:1M'\n[[controller]]\nsocket = 's'\n")
    apart = "name them in both, or serve each drive by a process of its own"
    shared = "all drives of a process have them, and {} does not name the same"
    for given, said in (
        ((first, other), f"{other}:1: plugins: {shared.format(first)}: {apart}"),
        ((first, none), f"{first}:1: plugins: {shared.format(none)}: {apart}"),
        ((none, first), f"{first}:1: plugins: {shared.format(none)}: {apart}"),
        ((same,), f"{same}:1: plugins: one is given twice"),
        ((bad,), f"{bad}:1: plugins: plugin {files}/bad.py:2: ZeroDivisionError: division by zero"),
        ((missing,), f"{missing}:1: plugins: plugin {files}/none.py: there is no such file"),
        ((text,), f"{text}:1: plugins: 'hello.py' is not a list of files"),
    ):
        words_ = [word for path in given for word in ("--drive", str(path))]
        refused: subprocess.CompletedProcess[str] = run("serve", *words_, command=(NVMEEMU,))
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert refused.stderr.startswith(f"nvmeemu serve: {said}"), refused.stderr


@pytest.mark.long
def test_a_test_knows_what_its_drive_file_adds(pytester: pytest.Pytester, files: Path) -> None:
    path = drive(files, "a", ["hello.py"])
    pytester.makepyfile(
        f"""
        import pytest
        from nvmeemu.faults import Fault, FaultError

        @pytest.mark.nvmeemu(drive={str(path)!r}, plugins=[{str(files / "hello.py")!r}])
        def test_both(nvme_server):
            nvme_server.faults.add(Fault({{"opcode": "hello"}}, do="drop"))

        @pytest.mark.nvmeemu(drive={str(path)!r})
        def test_file(nvme_server):
            nvme_server.faults.add(Fault({{"opcode": "hello"}}, do="drop"))

        def test_gone(nvme):
            with pytest.raises(FaultError):
                Fault({{"opcode": "hello"}}, do="drop")
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


@pytest.mark.long
def test_the_command_line_says_what_a_plugin_adds(files: Path) -> None:
    path = files / "hello.py"
    shown = run("serve", "--plugin", str(path), "--help", command=(NVMEEMU,))
    assert shown.returncode == 0
    assert shown.stdout.rstrip().endswith("hello: admin command Hello (C2h)")
    dotted, stopped, left = f"{files}/./hello.py", files / "stopped.py", files / "left.py"
    stopped.write_text("raise KeyboardInterrupt")
    left.write_text("raise SystemExit(0)")
    for words_, said in (
        (("--plugin", "/none.py"), "nvmeemu serve: plugin /none.py: there is no such file"),
        (("--plugin", str(path), "--plugin", str(path)), f"nvmeemu serve: --plugin {path}: it is given twice"),
        (("--plugin", str(path), "--plugin", dotted), f"nvmeemu serve: --plugin {dotted}: it is given twice"),
        (("--plugin", str(stopped)), f"nvmeemu serve: plugin {stopped}: it was interrupted: no KeyboardInterrupt"),
        (("--plugin", str(left)), f"nvmeemu serve: plugin {left}:1: it would end the process: no sys.exit there"),
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
