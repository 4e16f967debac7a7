"""New programs from old ones: whole instructions come, go and move, or one byte of one changes."""

from __future__ import annotations

import random

from machine import WIDTH, outcome_of

MOST = 200  # instructions; longer programs find no more, and cost more


def generate(dice: random.Random) -> bytes:
    return dice.randbytes(WIDTH * (1 + dice.randrange(1, 120)))


def mutate(program: bytes, dice: random.Random) -> bytes:
    """Some changes; the first unit is the header."""
    units = [program[start : start + WIDTH].ljust(WIDTH, b"\0") for start in range(0, max(len(program), 1), WIDTH)]
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        _change(units, dice)
    return b"".join(units[: MOST + 1])


def _change(units: list[bytes], dice: random.Random) -> None:
    place, kind = dice.randrange(len(units)), dice.randrange(8)
    if kind == 0:
        units[place + 1 : place + 1] = [dice.randbytes(WIDTH) for _ in range(dice.choice((1, 1, 2, 4, 16)))]
    elif kind == 1 and place:
        del units[place : place + dice.choice((1, 1, 2, 4, 16))]
    elif kind == 2 and place:
        start = dice.randrange(len(units))
        units[place:place] = units[max(start, 1) : start + dice.choice((1, 2, 4, 8))]
    elif kind == 3 and place:
        other = dice.randrange(1, len(units))
        units[place], units[other] = units[other], units[place]
    else:
        unit = bytearray(units[place])
        unit[dice.randrange(WIDTH)] = dice.choice((dice.randrange(256), 0, 0xFF, unit[0] ^ 1 << dice.randrange(8)))
        units[place] = bytes(unit)


def minimise(program: bytes, outcome: str) -> bytes:
    """The shortest program found whose outcome is the same."""
    units = [program[start : start + WIDTH] for start in range(0, len(program), WIDTH)]
    size = len(units) // 2
    while size:
        start = 1
        while start < len(units):
            fewer = units[:start] + units[start + size :]
            if outcome_of(b"".join(fewer)) == outcome:
                units = fewer
            else:
                start += size
        size //= 2
    return b"".join(units)
