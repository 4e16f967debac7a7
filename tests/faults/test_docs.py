"""docs/faults.md and docs/control.md: every example runs, and nothing is missing."""

from __future__ import annotations

import json
import re
import socket
from contextlib import closing
from pathlib import Path

import pytest

from nvmeemu import __version__
from nvmeemu.app.control.methods import Methods
from nvmeemu.faults import Faults
from nvmeemu.faults.actions import ACTIONS
from nvmeemu.faults.file import of_words, parse
from nvmeemu.faults.places import PLACES
from nvmeemu.faults.scenarios import SCENARIOS
from nvmeemu.plugins.ocp import KINDS
from nvmeemu.testing import Bench
from server.process import NVMEEMU, Served, run

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


def test_every_ocp_type_is_there_as_it_is() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \| `(.*)` at `(\w+)` \|$", PAGE, re.MULTILINE)
    written = [(int(number), name, json.loads(do), at) for number, name, do, at in rows]
    assert written == [(number, kind.name, kind.do, kind.at) for number, kind in KINDS.items()]


def test_the_file_and_the_command_line_are_right() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (fault,) = parse(text).faults
    (line,) = re.findall(r"fault add (match.*)", PAGE)
    assert of_words(line.split()) == {key: fault.as_table()[key] for key in ("match", "do")}


CONTROL = (Path(__file__).parents[2] / "docs" / "control.md").read_text()


def served(folder: Path) -> Served:
    return Served(str(folder / "s"), "--disk", "mem:16M", "--serial", "S1", "--control", folder / "c")


def test_the_protocol_is_as_documented(tmp_path: Path) -> None:
    (text,) = re.findall(r"```json\n(.*?)```", CONTROL, re.DOTALL)
    lines = text.splitlines()
    server = served(tmp_path)
    with closing(server), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp_path / "c"))
        with connection.makefile("rwb") as file:
            for request, answer in zip(lines[::2], lines[1::2], strict=True):
                file.write(request.encode() + b"\n")
                file.flush()
                expected = json.loads(answer)
                if "version" in (expected.get("result") or {}):
                    expected["result"]["version"] = __version__
                assert json.loads(file.readline()) == expected


def test_the_client_and_the_commands_are_as_documented(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", CONTROL, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", CONTROL, re.DOTALL)
    for name in ("disk2.img", "disk3.img"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    server = served(tmp_path)
    with closing(server):
        exec(compile(example.replace("/tmp/nvme.ctl", str(tmp_path / "c")), "docs/control.md", "exec"), {})
        for line in commands.splitlines()[1:]:
            script = line.replace("/tmp/nvme.ctl", str(tmp_path / "c")).replace("nvmeemu ctl", f"{NVMEEMU} ctl")
            result = run("-c", script, command=("bash",), cwd=tmp_path)
            assert (result.returncode, result.stderr) == (0, ""), line


def test_every_method_is_there() -> None:
    methods = Methods(Bench().controller, Faults(Bench().controller), lambda nsid, disk: None, lambda disk: None)  # type: ignore[arg-type,return-value]
    assert re.findall(r"^\| `([a-z.]+)` \|", CONTROL, re.MULTILINE) == list(methods.table())
