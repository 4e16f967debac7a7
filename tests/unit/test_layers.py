"""Imports point downwards only: the layers of docs/design.md, as they are; and what the core must not know."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nvmeemu

SOURCE = Path(nvmeemu.__file__).parent

# From the top; those in one layer do not know each other. A name is a module, or a package with all that is in it.
LAYERS = [
    ["__main__"],
    ["app.cli"],
    ["pytest_plugin", "profiles", "replay", "app.run", "app.serve"],
    ["app.announcing", "app.control_sockets"],
    ["app.assembly"],
    ["app.arming", "app.control", "app.ending", "app.engines", "app.recording"],
    ["app.disks", "app.image", "app.pid_file", "app.pools"],
    ["app.journals"],
    ["app.pairs"],
    ["app.drive", "app.folder_pool", "guest", "app.logs", "state", "testing", "trace", "vfio"],
    ["app.serving"],
    ["app.process", "app.vmm"],
    ["engine.native"],
    ["app.plugins"],
    ["plugins.ocp"],
    ["plugin"],
    ["plugins"],
    ["faults"],
    ["controller.controller"],
    ["controller.executor"],
    ["controller.pin", "controller.taps"],
    ["admin", "controller.fused", "controller.gaps", "io", "controller.media", "controller.saving"],
    ["commands.identify"],
    ["commands.copy", "commands.metadata"],
    ["commands.blocks", "commands.log_pages", "commands.namespaces", "commands.spans"],
    ["commands.format_nvm"],
    ["controller.changes"],
    ["commands.features"],
    ["commands.directives", "commands.feature", "commands.lba_status"],
    ["controller.media_status", "controller.request"],
    ["controller.state", "subsystem.management"],
    ["controller.coalescing", "controller.owners", "subsystem.subsystem"],
    ["engine.queues", "subsystem.formatting", "subsystem.inventory", "subsystem.saved_namespaces"],
    ["subsystem.sole_use"],
    ["controller.events", "subsystem.health", "subsystem.identity", "subsystem.namespace", "queues"],
    ["controller.doorbells", "controller.outstanding"],
    ["controller.transfer"],
    ["controller.sgl"],
    ["controller.interrupts", "controller.prp", "subsystem.pool"],
    ["subsystem.formatter", "subsystem.pairing"],
    ["engine.port", "subsystem.paired_media", "subsystem.protection"],
    ["backend.companion", "subsystem.disk_media"],
    ["backend.companion_header", "subsystem.media", "subsystem.saved", "subsystem.streams", "subsystem.turns"],
    ["backend", "ports", "controller.limits", "subsystem.formats", "subsystem.steps"],
    ["spec.words"],
    ["spec.errors", "regs"],
    ["spec"],
    ["spec.layout"],
    ["spec.names"],
    ["app.arguments", "controller.bounds", "tables", "app.signals", "toml"],
    ["text"],
    ["__init__", "app", "commands", "controller", "engine", "subsystem"],
]

# What these know of the rest, and no more than that.
KNOWS: dict[str, set[str]] = {
    "__init__": set(),
    "spec.layout": {"spec.names"},
    "spec.names": {"tables"},
    "tables": set(),
    "ports": set(),
    "engine.port": {"backend"},  # an engine gets and gives plain values: it knows no queue of ours
    "engine.native": {"backend", "engine.port", "spec", "spec.layout"},
    "backend": {"tables"},  # so a backend can be written and tested without any NVMe
    "app.logs": set(),
    "guest": {"app.process", "app.serving", "app.vmm"},  # it starts servers, and knows nothing of what they serve
    "app.serving": {"app.process"},
    "app.process": set(),
    "app.vmm": set(),
    "vfio": {"ports", "spec.layout"},  # no NVMe: any PCI function can be served
    "state": {"backend", "ports", "subsystem.saved"},  # it keeps values and knows nothing of what they mean
    "testing.client": set(),
    "testing.driver": {"spec"},  # judges any controller, also one that is not ours
    "testing.ports": {"ports"},
}

# Sans-IO: nothing below the controller, and not it either, knows a file, a thread, a clock or the system. (What all
# command lines have in common is below everything, and not in it.)
OUTSIDE = ("backend", "backend.companion", "app", "app.arguments", "app.signals")
CORE = [name for layer in LAYERS[LAYERS.index(["controller.controller"]) :] for name in layer if name not in OUTSIDE]
WORLD = {
    *("asyncio", "builtins", "ctypes", "fcntl", "io", "mmap", "multiprocessing", "os", "pathlib", "queue", "random"),
    *("resource", "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading"),
    *("concurrent", "time", "cffi"),
}
PLACED = {name for layer in LAYERS for name in layer}


@dataclass(frozen=True)
class Import:
    """``by`` and ``of`` are modules, without the package's name; ``is_late``: done in a function."""

    by: str
    of: str
    is_late: bool


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return name if name == "__init__" else name.removesuffix(".__init__")


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield module_of(path), ast.parse(path.read_text(), str(path))


# and who alone knows it
COMPILED = {
    "vfio._libvfio_user": "vfio.binding",
    "engine.native._engine": "engine.native.engine",
    "backend._block_map": "backend.shared_map",
}
MODULES = {name for name, _ in sources()} | COMPILED.keys()


def statements(node: ast.AST, is_late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All imports, also those for type checkers only (``if TYPE_CHECKING``): who reads the one needs the other."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, is_late
        yield from statements(child, is_late or isinstance(child, ast.FunctionDef | ast.Lambda))


def names(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Every dotted name that it may mean."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    else:
        assert statement.level == 0, "imports are absolute"
        for alias in statement.names:
            yield f"{statement.module}.{alias.name}"


def own(name: str) -> str | None:
    """The module of ours that this name is in."""
    parts = name.split(".")
    if parts[0] != "nvmeemu":
        return None
    while parts := parts[1:] if parts[0] == "nvmeemu" else parts[:-1]:
        if ".".join(parts) in MODULES:
            return ".".join(parts)
    return "__init__"


def imports() -> list[Import]:
    return [
        Import(by, of, is_late)
        for by, tree in sources()
        for statement, is_late in statements(tree)
        for name in names(statement)
        if (of := own(name)) is not None and of != by
    ]


def unit(module: str) -> str:
    """The name in ``LAYERS`` that this module stands for, or is in: the longest one."""
    parts = module.split(".")
    names = (".".join(parts[:size]) for size in range(len(parts), 0, -1))
    return next((name for name in names if name in PLACED), module)


IMPORTS = imports()


def test_every_module_has_its_layer() -> None:
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert set(placed) == {unit(module) for module in MODULES}


def test_imports_point_downwards_only() -> None:
    level = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    wrong = [one for one in IMPORTS if unit(one.by) != unit(one.of) and level[unit(one.by)] >= level[unit(one.of)]]
    assert not wrong


def test_no_module_waits_for_one_that_waits_for_it() -> None:
    """Within a package, too. A late import is none of these: ``open_backend`` makes what is built upon it."""
    graph: dict[str, set[str]] = {}
    for one in IMPORTS:
        if not one.is_late:
            graph.setdefault(one.by, set()).add(one.of)
    TopologicalSorter(graph).prepare()  # CycleError names the cycle


@pytest.mark.parametrize("name", KNOWS)
def test_it_knows_no_more_than_it_needs(name: str) -> None:
    known = {
        unit(one.of)
        for one in IMPORTS
        if (one.by == name or one.by.startswith(f"{name}.")) and unit(one.by) == unit(name) != unit(one.of)
    }
    assert known <= KNOWS[name]
    assert name in MODULES


def test_the_package_knows_nothing_that_lies_beside_it() -> None:
    """The folders of the checkout that no wheel contains."""
    beside = {path.name for path in SOURCE.parents[1].iterdir() if path.is_dir()} - {"src"}
    assert "tools" in beside
    for module, tree in sources():
        known = {name.partition(".")[0] for statement, _ in statements(tree) for name in names(statement)}
        assert not known & beside, module


def test_the_core_knows_nothing_of_the_world() -> None:
    for module, tree in sources():
        if unit(module) in CORE:
            outside = {name.partition(".")[0] for statement, _ in statements(tree) for name in names(statement)}
            assert not outside & WORLD, module


@pytest.mark.parametrize("compiled", COMPILED)
def test_one_module_only_knows_what_is_compiled(compiled: str) -> None:
    """The cffi edges: ``vfio.binding`` and ``engine.native.engine`` are typed, what they wrap is not."""
    assert {one.by for one in IMPORTS if one.of == compiled} == {COMPILED[compiled]}


QUICK = {"__init__", "app.arguments", "app.plugins", "controller.bounds"}


def test_the_command_line_is_quick_to_help() -> None:
    """``--help`` and shell completion load nothing of the device."""
    assert not [one for one in IMPORTS if one.by == "app.cli" and not one.is_late and one.of not in QUICK]


# Modules of Python that take milliseconds of each start, and that serving a plain disk does not need.
UNNEEDED_LIBRARY = {
    *(
        "asyncio",
        "concurrent.futures",
        "decimal",
        "difflib",
        "email",
        "fractions",
        "glob",
        "http",
        "importlib.metadata",
    ),
    *("multiprocessing", "pathlib", "pickle", "random", "sqlite3", "statistics", "subprocess", "tempfile", "tomllib"),
    *("unittest", "urllib.parse", "urllib.request", "xml"),
}


def test_a_server_loads_no_more_than_its_drives_need() -> None:
    """Faults and the control socket are a fifth of all modules, and most drives have neither: start-up."""
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import nvmeemu.app.serve\n"
        "from nvmeemu.app.cli import _parser\n"
        "from nvmeemu.app.drive.command_line import drives_of\n"
        "from nvmeemu.app.assembly import faults_of\n"
        "(drive,) = drives_of(_parser().parse_args(['serve', '--socket', 's', '--disk', 'mem:1M']))\n"
        "assert faults_of(drive) is None\n"
        "print(*(name.removeprefix('nvmeemu.') for name in sys.modules.keys() - before))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    unneeded = {"app.arming", "app.control", "app.drive.file", "faults", "plugin", "state", "testing", "toml", "trace"}
    loaded = set(result.stdout.split())
    assert {"app.serve", "argparse"} <= loaded
    assert not (unneeded | UNNEEDED_LIBRARY) & loaded
