"""kill -9 at 200 points of a run of writes and of Set Features that save: the state opens again and holds a prefix.

A point is a call with which SQLite changes a file, before it or when half of it is done; the calls of a start, which
may have to undo a change, are among them. Each drive begins with what the one before it has left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from nvmeemu.state.database import Database

HERE = Path(__file__).parent
POINTS = 200
STEPS = 10  # as in victim.py


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("kill") / "kill.so"
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *options, "-o", library, HERE / "kill.c", "-ldl"], check=True)
    return library


@pytest.mark.slow
@pytest.mark.kills("change-without-a-journal")
@pytest.mark.parametrize("engine", ["python", "native"])
def test_whatever_was_acknowledged_is_there_and_no_change_is_half_made(
    killer: Path, tmp_path: Path, engine: str
) -> None:
    state, disk, acknowledged = (tmp_path / name for name in ("drive.state", "disk", "acknowledged"))
    disk.write_bytes(bytes(1 << 20))
    victims = subprocess.Popen(
        [sys.executable, HERE / "victim.py", engine, state, disk, acknowledged],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"LD_PRELOAD": str(killer)},
        text=True,
        bufsize=1,
    )
    with victims:
        assert victims.stdin
        assert victims.stdout

        def live(call: int, half: int, version: int) -> int:
            print(call, half, version, file=victims.stdin)
            assert victims.stdout
            return int(victims.stdout.readline())

        calls = live(0, 0, 1)
        assert calls > 50
        before, killed = STEPS, 0
        for point in range(POINTS):
            call, half = divmod(point * 2 * calls // POINTS, 2)
            killed += not live(call + 1, half, before + 1)
            last = int.from_bytes(acknowledged.read_bytes()[-2:], "little")
            with closing(Database.open(str(state))) as database:
                found = database.read()
            values = {found["controller.1", f"feature.05.{nsid}"] for nsid in (1, 2)}
            assert len(values) == 1, "half of a change"
            (value,) = values
            assert value in (max(before, last), max(before, last) + 1)
            assert int.from_bytes(disk.read_bytes()[:512], "little") in (value, int(value) + 1)
            before = int(value)
        victims.stdin.close()
    assert killed > POINTS * 9 // 10
