"""verify_io.py, which the guests run, can find what is wrong."""

from pathlib import Path

import pytest

from tools.guest import verify_io

SEED, BLOCKS, ROUNDS = 5, 512, 40


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """As a worker leaves it."""
    (worker,) = verify_io.workers(SEED, BLOCKS, [ROUNDS])
    image = tmp_path / "image"
    image.write_bytes(b"".join(worker.content(block, worker.held[block]) for block in range(BLOCKS)))
    return image


def check(image: Path, rounds: int = ROUNDS, *, exact: bool = True) -> int:
    """Returns the round that the worker was in."""
    (worker,) = verify_io.workers(SEED, BLOCKS, [rounds])
    verify_io.check(verify_io.Device(str(image), direct=False), worker, exact=exact)
    return worker.round


def test_what_was_written_is_accepted(image: Path) -> None:
    assert check(image) == ROUNDS


def test_one_wrong_bit_is_found(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[100 * 4096 + 1234] ^= 1
    image.write_bytes(content)
    with pytest.raises(verify_io.Mismatch, match="block 100 "):
        check(image)


def test_a_lost_write_is_found(image: Path) -> None:
    with pytest.raises(verify_io.Mismatch, match="and not round 41 "):
        check(image, ROUNDS + 1)
    with pytest.raises(verify_io.Mismatch):
        check(image, ROUNDS + 1, exact=False)


def test_a_block_in_a_wrong_place_is_found(image: Path) -> None:
    content = bytearray(image.read_bytes())
    content[:4096], content[4096:8192] = content[4096:8192], content[:4096]
    image.write_bytes(content)
    with pytest.raises(verify_io.Mismatch, match=r"block 0 holds round .* block 1"):
        check(image)


def test_after_a_crash_later_rounds_are_accepted_and_learnt(image: Path) -> None:
    with pytest.raises(verify_io.Mismatch):
        check(image, ROUNDS - 10)
    assert check(image, ROUNDS - 10, exact=False) == ROUNDS - 1
