"""``nvmeemu image``: what it tells of an image and its companion, and what it makes of those that do not fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvmeemu.app.cli import main
from nvmeemu.backend.companion import Companion
from nvmeemu.subsystem.formats import Format, Guard, Protection
from nvmeemu.subsystem.media import BlockState

MIB = 1 << 20
PROTECTED = Format(512, 8, protection=Protection(1))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(b"x" * MIB)
    return path


@pytest.fixture
def companion(image: Path) -> Path:
    made = Companion.make(f"{image}.nvme", PROTECTED, MIB, [(0, 5)])
    made.mark(9, 2, BlockState.UNCORRECTABLE)
    made.write_metadata(3, memoryview(b"m" * 8))
    made.mark(2047, 1, BlockState.WRITTEN)
    made.close()
    return Path(f"{image}.nvme")


class Said:
    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        try:
            self.status = main(["image", *map(str, words)])
        except SystemExit as end:
            self.status = int(end.code or 0)
        self.out, self.err = capsys.readouterr()
        assert "Traceback" not in self.err
        assert len(self.err.splitlines()) == (1 if self.status else 0)


def test_what_there_is_is_told(image: Path, companion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = Said(capsys, "info", image)
    assert said.status == 0
    assert "512 bytes, 8 bytes of metadata apart, protection type 1, last, a guard of 16 bits" in said.out
    assert "blocks: 2048, 2040 deallocated, 6 written, 2 uncorrectable" in said.out
    assert Said(capsys, "check", image).out == f"{image}: the two fit\n"


def test_a_plain_disk_fits(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a plain disk" in Said(capsys, "info", image).out
    assert Said(capsys, "check", image).status == 0
    said = Said(capsys, "repair", image)
    assert (said.status, "there is nothing to repair" in said.err) == (1, True)
    assert not Path(f"{image}.nvme").exists()


def test_an_image_that_has_grown(image: Path, companion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(image, 2 * MIB)
    said = Said(capsys, "check", image)
    assert said.status == 1
    assert "the image has 2 MiB, and its companion is for 1 MiB: repair it with nvmeemu image repair" in said.err
    assert "repaired" in Said(capsys, "repair", image).out
    assert Said(capsys, "check", image).status == 0


@pytest.mark.kills("what-was-cut-off-comes-back")
def test_an_image_that_has_shrunk(image: Path, companion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was cut off is not there again when it grows."""
    os.truncate(image, MIB // 2)
    assert Said(capsys, "check", image).status == 1
    assert Said(capsys, "repair", image).status == 0
    assert Said(capsys, "check", image).status == 0
    os.truncate(image, MIB)
    assert Said(capsys, "repair", image).status == 0
    found = Companion.open(str(companion), read_only=True)
    assert next(found.states(2047, 1))[0] is BlockState.DEALLOCATED
    assert found.read_metadata(3, 1) == b"m" * 8
    found.close()


@pytest.mark.kills("an-interrupted-format-fits")
def test_a_format_that_was_interrupted(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = Format(4096, 16, True, Protection(2, Guard.CRC64, 16))
    Companion.make(f"{image}.nvme", Format(512), MIB, intention=wanted).close()
    said = Said(capsys, "check", image)
    assert said.status == 1
    assert "a Format to 4096 bytes, 16 bytes of metadata in the same buffer" in said.err
    assert Said(capsys, "repair", image).status == 0
    assert not any(image.read_bytes())
    found = Companion.open(f"{image}.nvme", read_only=True)
    assert (found.format, found.written) == (wanted, 0)
    found.close()


@pytest.mark.kills("any-format-fits-the-companion")
def test_a_companion_whose_headers_are_gone(image: Path, companion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with companion.open("r+b") as file:
        file.write(bytes(8192))
    for command in ("info", "check", "repair"):
        said = Said(capsys, command, image)
        assert said.status == 1
        assert "is damaged: it is no companion" in said.err
    said = Said(capsys, "repair", image, "block_size=4096")
    assert (said.status, "is larger than this format has it" in said.err) == (1, True)
    assert Said(capsys, "repair", image, "metadata=8", "protection=1").status == 0
    found = Companion.open(str(companion), read_only=True)
    assert (found.format, found.written, bytes(found.read_metadata(3, 1))) == (PROTECTED, 8, b"m" * 8)
    found.close()


def test_a_companion_that_has_become_shorter(image: Path, companion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(companion, 9000)
    assert "has become shorter" in Said(capsys, "check", image).err
    assert Said(capsys, "repair", image).status == 0
    assert Said(capsys, "check", image).status == 0


def test_one_that_is_in_use_is_left_alone(image: Path, companion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = Companion.open(str(companion))
    assert Said(capsys, "repair", image).status == 1
    held.close()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["info", "/nowhere/a.img"], 1),
        (["info", "mem:1M"], 2),
        (["info"], 2),
        (["tell", "a.img"], 2),
        ([], 2),
    ],
)
def test_bad_use_is_one_line(words: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert Said(capsys, *words).status == status


@pytest.mark.parametrize("key", ["metadata=7", "no_such=1", "protection=1", "metadata"])
def test_a_format_that_cannot_be_is_bad_use(
    key: str, image: Path, companion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Said(capsys, "repair", image, key).status == 2


def test_a_companion_elsewhere(image: Path, companion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = companion.rename(companion.with_name("other"))
    assert "a guard of 16 bits" in Said(capsys, "info", image, "--companion", other).out
    assert Said(capsys, "info", image, "--companion", "/nowhere/x").status == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["info", "--help"], ["check", "--help"], ["repair", "--help"]):
        assert "IMAGE" in Said(capsys, *words).out or words == ["--help"]
