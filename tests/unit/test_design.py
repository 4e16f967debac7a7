"""docs/design.md tells of the house as it is: its files are there, and its layers are those that are enforced."""

from __future__ import annotations

import re
from pathlib import Path

from unit.test_layers import LAYERS, SOURCE

PAGE = (Path(__file__).parents[2] / "docs" / "design.md").read_text()


def test_its_files_are_there() -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.[ch]|(?:\w+/)*\w+\.py|(?:\w+/)+)`", PAGE)
    named.remove("nvme_spec.h")  # the build makes it
    assert len(set(named)) > 25
    places = (SOURCE, SOURCE.parents[1], SOURCE / "engine/native", SOURCE / "vfio")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_its_layers_are_those_of_the_test() -> None:
    """``__main__`` and what has no code are left out."""
    told = [line.split(" | ") for line in PAGE.split("```\napp.cli\n")[1].split("```")[0].splitlines()]
    assert [["app.cli"], *told] == LAYERS[1:-1]
