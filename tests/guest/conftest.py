"""All tests here boot guests; most run the script as a user does."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "scripts" / "run_qemu_guest.sh"
PATIENCE = 2000.0  # a guest's own time limit is nearer


@dataclass(frozen=True)
class Ended:
    """How a run of the script ended."""

    status: int
    out: str
    err: str

    @property
    def verdict(self) -> str:
        """The last line."""
        return self.out.splitlines()[-1] if self.out else ""


Script = Callable[..., Ended]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(PATIENCE))


@pytest.fixture
def own_tmp(tmp_path: Path) -> Path:
    """The TMPDIR of the runs: what they leave behind is seen here."""
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


@pytest.fixture
def script(own_tmp: Path) -> Script:
    """Runs the script; prints all it said, for when the test fails."""

    def run(*arguments: str | Path) -> Ended:
        command = [str(SCRIPT), *map(str, arguments)]
        environment = os.environ | {"TMPDIR": str(own_tmp)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        print("$", *command, f"\n{done.stdout}{done.stderr}status {done.returncode}")
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def recorded() -> list[str]:
    """The options that put a run into the matrix in docs/guests.md: scripts/guest_matrix.sh sets GUEST_RECORDS."""
    records = os.environ.get("GUEST_RECORDS")
    return ["--result-json", records] if records else []


@pytest.fixture(params=["nvmeemu", pytest.param("qemu-nvme", marks=pytest.mark.slow)])
def drive(request: pytest.FixtureRequest, recorded: list[str]) -> list[str]:
    """The options for our drive, and for QEMU's own: with that the tests themselves are tested."""
    return recorded if request.param == "nvmeemu" else [*recorded, "--peer", str(request.param)]
