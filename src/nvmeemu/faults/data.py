"""Bytes that go wrong."""

from __future__ import annotations

import random


def random_of(seed: int) -> random.Random:
    return random.Random(seed)


def spoil(kind: str, bits: int, chance: random.Random, value: bytes | bytearray) -> bytes:
    """``value`` with so many bits flipped ("flip"), or all "zeros", or all "ones"."""
    if kind == "zeros":
        return bytes(len(value))
    if kind == "ones":
        return b"\xff" * len(value)
    spoiled = bytearray(value)
    for place in chance.sample(range(8 * len(value)), min(bits, 8 * len(value))):
        spoiled[place // 8] ^= 1 << place % 8
    return bytes(spoiled)


def lose(old: bytes, new: bytes) -> bytes:
    """Nothing arrives."""
    return old


def tear(old: bytes, new: bytes, length: int) -> bytes:
    """Only the first ``length`` bytes arrive."""
    return new[:length] + old[length:]
