"""The mutation runner: known faults put into the code, to prove that the tests can fail.

    .venv/bin/python tests/conformance/mutants.py [--of FOLDER] [NAME...]

Each ``[[mutant]]`` of mutants*.toml in a folder of tests names some code in a function, and what to put there (see
``anchors``, which finds it in whatever file it is). A test of that folder names the mutants that it kills:
``@pytest.mark.kills("late-interrupt")`` or, if it is of a fact, ``@pytest.mark.fact("A5", kills=("cq-of-qid-zero",))``;
it must pass without them and fail, in its own body, with each. Of a parametrized test one case has to fail; a mark on a
single ``pytest.param`` means that case.

No source is touched: pytest is imported once, and each mutant gets a forked process in which the changed module is
imported from memory instead, as in the servers that its tests start.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import re
import resource
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT / "tests")  # instead of this folder: its modules are conformance's

from conformance.anchors import BadMutant, Change, change_c, change_python  # noqa: E402
from conformance.changed import hand_on, install  # noqa: E402

TESTS = Path("tests/conformance")
OF_C = "native"  # the folder whose mutants are in C; it has a runner of its own
_OTHER_ENGINES = {"native", "mapped"}  # cases of these are left out: the mutants are those of the Python path
_LIBRARIES = ("_cffi_backend", "hypothesis.stateful", "rich")  # what tests import and takes time
_JOBS = 2
_MEMORY = 2 << 30  # bytes; a mutant may loop
_SECONDS = 60  # for a test; machines are shared


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old`` in ``within`` becomes ``new``. ``why``: whose fault it is, or what it stands for."""

    name: str
    within: str
    old: str
    new: str
    why: str

    def change(self, root: Path) -> Change:
        """Raises BadMutant."""
        return change_python(root, self.within, self.old, self.new)


class MutantOfC(Mutant):
    """The same in C."""

    def change(self, root: Path) -> Change:
        return change_c(root, self.within, self.old, self.new)


def load(root: Path, tests: Path = TESTS) -> dict[str, Mutant]:
    """The mutants of all files of that folder, by name. Raises BadMutant."""
    kind = MutantOfC if tests.name == OF_C else Mutant
    found: dict[str, Mutant] = {}
    for path in sorted((root / tests).glob("mutants*.toml")):
        for entry in tomllib.loads(path.read_text()).get("mutant", ()):
            try:
                mutant = kind(**entry)
            except TypeError as error:
                raise BadMutant(f"{path.name}: {entry.get('name')}: {error}") from None
            if mutant.name in found:
                raise BadMutant(f"{path.name}: there are two mutants named {mutant.name}")
            found[mutant.name] = mutant
    return found


def misfits(root: Path, mutants: Iterable[Mutant]) -> list[str]:
    """Those that cannot be made, with the reason: whoever has moved code may have much to follow."""
    found = []
    for mutant in mutants:
        try:
            mutant.change(root)
        except BadMutant as error:
            found.append(f"ERROR: {mutant.name}: {error}")
    return found


@dataclass
class Outcome:
    """What a run of tests showed, by the name of the test or of its case."""

    kills: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # mutant -> tests
    nodes: list[str] = field(default_factory=list)  # the tests that name a mutant
    failed: dict[str, str] = field(default_factory=dict)  # why, in a line
    broken: dict[str, str] = field(default_factory=dict)  # failed outside their body: that proves nothing


class _Watcher:
    """A pytest plugin: which tests name these mutants (any, if none are given), and how each of them ends. The others
    are left out; with ``mutant``, also the cases of a test that has failed in one of them, unless a case is named."""

    def __init__(self, outcome: Outcome, names: Collection[str], mutant: Mutant | None) -> None:
        self.outcome = outcome
        self._names = names
        self._mutant = mutant

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        kept = []
        for item in items:
            callspec = getattr(item, "callspec", None)
            if callspec and not _OTHER_ENGINES.isdisjoint(map(str, callspec.params.values())):
                continue
            of_case = list(callspec.marks) if callspec else []
            marks = [(mark, mark.kwargs.get("kills", ())) for mark in item.iter_markers("fact")]
            marks += [(mark, mark.args) for mark in item.iter_markers("kills")]
            for mark, names in marks:
                test = item.nodeid if mark in of_case else _function(item.nodeid)
                for name in names:
                    self.outcome.kills[name].add(test)
            if any(not self._names or name in self._names for _, names in marks for name in names):
                kept.append(item)
        items[:] = kept
        self.outcome.nodes = [item.nodeid for item in kept]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        is_named = self._mutant is None or item.nodeid in self.outcome.kills[self._mutant.name]
        if not is_named and _function(item.nodeid) in self.outcome.failed:
            pytest.skip("another case has failed")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcome.broken[report.nodeid] = report.longreprtext.strip().splitlines()[-1]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            found = self.outcome.failed if report.when == "call" else self.outcome.broken
            crash = getattr(report.longrepr, "reprcrash", None)
            found[report.nodeid] = found[_function(report.nodeid)] = crash.message.partition("\n")[0] if crash else "?"


def _function(nodeid: str) -> str:
    """The test of which a node may be one case."""
    return nodeid.partition("[")[0]


def survey(root: Path, tests: Path, names: Collection[str]) -> Outcome:
    """Run the tests of a folder that name these mutants (any, if none are given), without any."""
    outcome = Outcome()
    _run_tests(root, [str(tests)], _Watcher(outcome, names, None))
    return outcome


def run_tests(root: Path, mutant: Mutant, nodes: Iterable[str]) -> Outcome:
    """Run tests on the code with the mutant in it, in this process, which must not have imported the project."""
    outcome = Outcome()
    change = mutant.change(root)
    changed = change.module, str(root / change.file), change.text
    install(*changed)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        hand_on(Path(folder), *changed)
        _run_tests(root, nodes, _Watcher(outcome, [mutant.name], mutant))
    return outcome


def _run_tests(root: Path, nodes: Iterable[str], watcher: _Watcher) -> None:
    options = ["--rootdir", str(root), "-q", "-n0", "-p", "no:cacheprovider", "--tb=short", f"--timeout={_SECONDS}"]
    options += ["--hypothesis-profile=mutants", "--hypothesis-seed=0"]
    options.append("--assert=plain")  # where CI is set, pytest would explain the difference of two megabytes: minutes
    said = io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = pytest.main([*options, *nodes], plugins=[watcher])
    if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
        watcher.outcome.broken["pytest"] = said.getvalue().strip()


@dataclass
class Verdict:
    mutant: Mutant
    tests: int
    faults: list[str]  # why it is not killed; none: it is
    reasons: list[str]  # how each test failed
    seconds: float


def _judge(task: tuple[Path, Mutant, set[str]]) -> Verdict:
    """Whether every test that names the mutant fails with it. Runs in a process of its own."""
    root, mutant, tests = task
    begin = time.monotonic()
    try:
        outcome = run_tests(root, mutant, tests)
    except BadMutant as error:
        return Verdict(mutant, len(tests), [str(error)], [], 0)
    # What fails in its body may break at its end, too: a server that has died cannot be left in order.
    faults = [f"breaks {test}: {why}" for test, why in outcome.broken.items() if test not in outcome.failed]
    if not faults:
        faults = [f"survives {test}" for test in sorted(tests - outcome.failed.keys())]
    reasons = [outcome.failed[test] for test in sorted(tests & outcome.failed.keys())]
    faults += [f"is out of date: {reason}" for reason in reasons if _is_of_a_name_in(mutant, reason)]
    return Verdict(mutant, len(tests), faults, reasons, time.monotonic() - begin)


def _is_of_a_name_in(mutant: Mutant, reason: str) -> bool:
    """The mutant itself uses what is no longer there: any test fails with that, and it proves nothing."""
    return any(f"'{name}'" in reason for name in _words(mutant.new) - _words(mutant.old)) and bool(
        re.match("(AttributeError|NameError|TypeError|UnboundLocalError|ImportError): ", reason)
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def _prepare_forks() -> None:
    """Import once what is not the project's, and keep each fork's garbage collector away from all that is here."""
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    for name in _LIBRARIES:
        import_module(name)
    # The same examples each time; the first one that fails is enough, however long.
    settings.register_profile(
        "mutants",
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.too_slow],
    )
    gc.collect()
    gc.freeze()


def _faults_of(found: Outcome, mutants: Iterable[str]) -> list[str]:
    """What is wrong before any mutant is tried."""
    failed = {**found.failed, **found.broken}
    faults = [f"{test} fails without any mutant: {why}" for test, why in failed.items() if test == _function(test)]
    for name in sorted(found.kills.keys() - set(mutants)):
        faults.append(f"no mutant is named {name}: {', '.join(sorted(found.kills[name]))}")
    faults += [f"no test names the mutant {name}" for name in mutants if name not in found.kills]
    return faults


def run(root: Path, only: Sequence[str] = (), verbose: bool = False, tests: Path = TESTS) -> int:
    """Run the mutants of a folder of tests and print a table; the number of faults found."""
    try:
        mutants = load(root, tests)
    except BadMutant as error:
        print(f"mutants: {error}")
        return 1
    unfit = misfits(root, [mutant for name, mutant in mutants.items() if not only or name in only])
    if unfit:  # the code is known to all processes that are forked from here on
        print(*unfit, sep="\n")
        return len(unfit)
    _prepare_forks()
    with get_context("fork").Pool(_JOBS, maxtasksperchild=1) as pool:
        found = pool.apply(survey, (root, tests, only))
        faults = [f"there is no mutant {name}" for name in only if name not in mutants]
        if not only:
            faults += _faults_of(found, mutants)
        tasks = [
            (root, mutant, found.kills[name])
            for name, mutant in mutants.items()
            if name in found.kills and (not only or name in only)
        ]
        width = max((len(name) for name in mutants), default=0)
        results: Counter[str] = Counter()
        for verdict in pool.imap(_judge, tasks, chunksize=1):
            result = "NOT KILLED" if verdict.faults else "killed"
            results[result] += 1
            numbers = f"by {verdict.tests}  {verdict.seconds:5.1f} s"
            print(f"{verdict.mutant.name:{width}}  {result:10}  {numbers}  {verdict.mutant.why}")
            for reason in verdict.reasons if verbose else ():
                print(f"{'':{width}}    {reason}")
            faults += [f"{verdict.mutant.name} {fault}" for fault in verdict.faults]
    for fault in faults:
        print(f"ERROR: {fault}")
    print(f"mutants: {results['killed']} killed, {results['NOT KILLED']} not, {len(faults)} errors")
    return len(faults)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run tests against known faults.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutants")
    parser.add_argument("--of", type=Path, default=TESTS, metavar="FOLDER", help=f"the tests and mutants ({TESTS})")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how each test failed")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    return 1 if run(ROOT, arguments.names, arguments.verbose, arguments.of) else 0


if __name__ == "__main__":
    sys.exit(main())
