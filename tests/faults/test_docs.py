"""docs/faults.md: every example runs, and every action and scenario is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvmeemu.faults.actions import ACTIONS
from nvmeemu.faults.file import of_words, parse
from nvmeemu.faults.match import PLACES
from nvmeemu.faults.scenarios import SCENARIOS

PAGE = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
PRELUDE, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def names(text: str) -> list[str]:
    """Each example's heading, or its first words."""
    return re.findall(r"^### (\w+)$", text, re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.strip().splitlines()[0][:60] for example in EXAMPLES])
def test_the_example_runs(example: str) -> None:
    exec(compile(PRELUDE + example, "docs/faults.md", "exec"), {})


def test_every_action_has_its_example_and_says_where_it_works() -> None:
    assert sorted(names(PAGE)) == sorted(ACTIONS)
    for section in PAGE.split("\n### ")[1:]:
        name, _, text = section.partition("\n")
        assert "```python" in text
        places = ACTIONS[name].places
        if len(places) < len(PLACES):
            said = text.partition("```")[0]
            assert [at for at in places if f"`{at}`" not in said] == []
            assert f"`{places[0]}`" == re.search(r"`\w+`", said)[0]  # type: ignore[index]


def test_every_scenario_is_there() -> None:
    assert re.findall(r"^\| `([\w-]+)` \| ", PAGE.partition("## Scenarios")[2], re.MULTILINE) == list(SCENARIOS)


def test_the_file_and_the_command_line_are_right() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (fault,) = parse(text).faults
    (line,) = re.findall(r"fault add (match.*)", PAGE)
    assert of_words(line.split()) == {key: fault.as_table()[key] for key in ("match", "do")}
