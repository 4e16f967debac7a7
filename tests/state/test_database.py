"""The file of a saved state: what is kept, what is refused, and who may have it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nvmeemu.ports import StateError, Value
from nvmeemu.state.database import APPLICATION_ID, VERSION, Database
from nvmeemu.state.file import StateFile
from nvmeemu.subsystem.saved import MemoryState, SavedValue, forgotten, of_namespace
from nvmeemu.testing import ManualWorker

VALUES: dict[tuple[str, str], Value] = {
    ("health", "writes"): (1 << 63) - 1,
    ("health", "least"): -(1 << 63),
    ("drive", "serial"): "naïve\n",
    ("controller.1", "bytes"): bytes(range(256)),
    ("namespace.1", "none"): b"",
    ("namespace.10", "zero"): 0,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "drive.state"


def refused(path: Path) -> str:
    """Why the file is refused, on one line that says what to do. It is not touched, and another attempt says the same:
    nothing is left open."""
    before = path.read_bytes()
    texts = []
    for _ in range(2):
        with pytest.raises(StateError) as caught:
            Database.open(str(path))
        texts.append(str(caught.value))
    assert path.read_bytes() == before
    assert texts[0] == texts[1]
    assert "\n" not in texts[0]
    return texts[0]


def made(path: Path) -> None:
    with closing(Database.open(str(path))) as database:
        database.write(VALUES)


@pytest.mark.kills("state-is-not-committed")
def test_what_was_written_is_there_with_its_type(path: Path) -> None:
    made(path)
    with closing(Database.open(str(path))) as database:
        found = database.read()
        assert found == VALUES
        assert [type(found[key]) for key in VALUES] == [type(value) for value in VALUES.values()]
        database.write({("health", "writes"): None, ("health", "least"): 1, ("none", "there"): None})
    with closing(Database.open(str(path))) as database:
        assert database.read() == {key: value for key, value in VALUES.items() if key[0] != "health"} | {
            ("health", "least"): 1
        }


def test_between_changes_there_is_one_file(path: Path) -> None:
    """It can be copied while the server runs, and moved when it has ended."""
    with closing(Database.open(str(path))) as database:
        database.write(VALUES)
        assert os.listdir(path.parent) == [path.name]
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
    with closing(Database.open(str(copy))) as database:
        assert database.read() == VALUES


@pytest.mark.kills("state-is-not-locked")
def test_two_cannot_have_it(path: Path) -> None:
    made(path)
    link = path.with_name("link")
    link.symlink_to(path)
    with closing(Database.open(str(path))):
        assert refused(path) == refused(link)
        assert "in use by another server: stop that one, or give each drive a state of its own" in refused(path)
    Database.open(str(link)).close()


def test_it_can_be_looked_at_while_a_server_has_it(path: Path) -> None:
    with closing(Database.open(str(path))) as database:
        database.write(VALUES)
        with closing(sqlite3.connect(path)) as looking:
            assert looking.execute("SELECT count(*) FROM state").fetchone() == (len(VALUES),)
        database.write({("health", "writes"): 1})


def test_a_change_is_made_wholly_or_not_at_all(path: Path) -> None:
    made(path)
    with closing(Database.open(str(path))) as database:
        for bad in (1 << 63, "\ud800"):
            with pytest.raises(StateError):
                database.write({("health", "writes"): 1, ("health", "least"): bad})
        assert database.read() == VALUES


@pytest.mark.kills("newer-state-is-taken")
def test_a_newer_version_is_refused(path: Path) -> None:
    made(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    text = refused(path)
    assert f"version {VERSION + 1}" in text
    assert "start the newer one, or give another path" in text


@pytest.mark.kills("foreign-database-is-taken")
def test_a_database_of_another_program_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE state (scope, name, value)")
    assert "database of another program: give another path" in refused(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("INSERT INTO state VALUES ('a', 'b', 1.5)")
        connection.commit()
    with pytest.raises(StateError, match=r"b of a is 1\.5"), closing(Database.open(str(path))) as database:
        database.read()


@pytest.mark.parametrize(
    "content", [b"", b"SQLite", b"\0" * 8192, b"[[namespace]]\n" * 1000, b"SQLite format 3\0" * 64]
)
def test_what_is_no_database_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "put a backup in its place, or move it away to begin as new" in refused(path)


@pytest.mark.kills("damaged-state-is-taken")
def test_a_damaged_one_is_refused_wherever_it_is_cut_or_overwritten(path: Path) -> None:
    made(path)
    with closing(Database.open(str(path))) as database:
        database.write({("filler", str(number)): bytes(300) for number in range(100)})
    whole = path.read_bytes()
    assert len(whole) > 5 * 4096
    for size in (1, 100, 4095, 4096, 8192, 8192 + 100, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "move it away to begin as new" in refused(path), size
    for page in range(len(whole) // 4096):
        start = page * 4096 + (100 if page == 0 else 0)
        path.write_bytes(whole[:start] + b"\xa5" * 64 + whole[start + 64 :])
        assert "damaged" in refused(path), page
    path.write_bytes(whole)
    Database.open(str(path)).close()


def test_paths_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no folder"):
        Database.open(str(tmp_path / "none" / "drive.state"))
    with pytest.raises(StateError, match="Is a directory"):
        Database.open(str(tmp_path))
    odd = tmp_path / "a?mode=memory&b%20#c"
    Database.open(str(odd)).close()
    assert odd.exists()


def test_the_server_that_was_later_keeps_what_the_first_one_has_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(path)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)  # when it looked, there was none
    with closing(Database.open(str(path))) as database:
        assert database.read() == VALUES
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.kills("migration-loses-the-version")
def test_a_file_of_version_1_is_brought_up_and_keeps_what_is_in_it(path: Path) -> None:
    """It was written by the nvmeemu that had this version."""
    path.write_bytes((Path(__file__).parent / "data" / "version1.state").read_bytes())
    expected = {
        ("drive", "serial"): "NVMEEMU-OLD",
        ("controller.1", "feature.01.0"): 7,
        ("controller.1", "feature.05.1"): 9,
        ("controller.1", "feature.c2.0"): bytes(range(16)),
    }
    for number in (1, 2):
        with closing(Database.open(str(path))) as database:
            assert database.read() == expected
            database.begin({})
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
            assert connection.execute("SELECT count(*) FROM power_cycles").fetchone() == (number,)


def test_a_new_file_is_as_one_that_was_brought_up(path: Path) -> None:
    old = path.with_name("old")
    old.write_bytes((Path(__file__).parent / "data" / "version1.state").read_bytes())
    schemas = []
    for one in (path, old):
        Database.open(str(one)).close()
        with closing(sqlite3.connect(one)) as connection:
            schemas.append(connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall())
    assert schemas[0] == schemas[1]


def test_the_times_of_the_last_power_cycles_are_kept(path: Path) -> None:
    with closing(Database.open(str(path))) as database:
        for number in range(4):
            database.begin({("a", "a"): number})
            if number != 2:
                database.end({("a", "a"): -number})
        with closing(sqlite3.connect(path)) as looking:
            rows = looking.execute("SELECT number, ended IS NULL, began <= ended FROM power_cycles").fetchall()
            assert rows == [(1, 0, 1), (2, 0, 1), (3, 1, None), (4, 0, 1)]
            looking.execute("INSERT INTO power_cycles VALUES (1001, '', '')")
            looking.commit()
        database.begin({})
        with closing(sqlite3.connect(path)) as looking:
            kept = looking.execute("SELECT min(number), max(number) FROM power_cycles").fetchone()
        assert kept == (3, 1002)


# --- for the controller's thread


def test_changes_are_made_in_their_order_and_seen_when_they_are_durable(path: Path) -> None:
    worker = ManualWorker()
    state = StateFile.open(str(path), worker)
    done: list[BaseException | None] = []
    for number in range(3):
        state.save({("a", "number"): number, ("a", str(number)): 1}, done.append)
    assert (state.get("a", "number"), len(worker.tasks), done, state.is_busy) == (None, 1, [], True)
    for number in range(3):
        worker.tasks[0].finish()
        assert state.get("a", "number") == number
        assert done == [None] * (number + 1)
    assert not state.is_busy
    state.save({("a", "number"): 2, ("none", "there"): None}, done.append)  # nothing changes
    assert (len(done), worker.tasks) == (4, [])
    state.close()


def test_a_change_that_fails_changes_nothing_and_the_next_one_is_made(path: Path) -> None:
    worker = ManualWorker()
    state = StateFile.open(str(path), worker)
    done: list[BaseException | None] = []
    state.save({("a", "a"): 1, ("a", "b"): 1 << 64}, done.append)
    state.save({("a", "c"): 1}, done.append)
    worker.finish_all()
    assert isinstance(done[0], StateError)
    assert str(path) in str(done[0])
    assert done[1:] == [None]
    assert state.scope("a") == {"c": 1}
    state.close()


def test_a_scope_can_be_forgotten_and_no_other_one() -> None:
    state = MemoryState()
    state.put(VALUES)
    state.put(forgotten(state, of_namespace(1)))
    assert state.scope("namespace.1") == {}
    assert state.scope("namespace.10") == {"zero": 0}


def test_a_value_of_another_type_is_an_error() -> None:
    state = MemoryState()
    state.put({("health", "writes"): "7"})
    with pytest.raises(StateError, match="writes of health is '7', and no int"):
        SavedValue("health", "writes", 0).of(state)
    assert SavedValue("health", "reads", 5).of(state) == 5
