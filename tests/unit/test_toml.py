"""Where each key of a TOML file stands: what an error is worth depends on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmeemu import toml
from nvmeemu.toml import Place, TomlError, line_of, parse

TEXT = r"""# name = 1, [[a]]
name = "x"  # [[namespace]]
a.b."c d" = 1
[identity]
serial = @@@
[limits]
x = 3 \@@@
"\@@@
@@@
model = 'a # b'
[[namespace]]
x = [1,
  { y = 2, z = [ 3,
   4 ] }, # ]
]
d = 1979-05-27 07:32:00
[[namespace]]
x = !!!
y = 1!!!'
y = 5
[namespace.sub]
k = true
[[namespace.l]]
k = 1
[[namespace . "l"]]
k = 2
[ "q.r" ]
v = {}
""".replace("@@@", 3 * '"').replace("!!!", 3 * "'")


def test_each_key_is_where_it_is() -> None:
    _, lines = parse(TEXT)
    assert lines == {
        ("name",): 2,
        ("a",): 3,
        ("a", "b"): 3,
        ("a", "b", "c d"): 3,
        ("identity",): 4,
        ("identity", "serial"): 5,
        ("identity", "model"): 10,
        ("namespace",): 11,
        ("namespace", 0): 11,
        ("namespace", 0, "x"): 12,
        ("namespace", 0, "x", 0): 12,
        ("namespace", 0, "x", 1): 13,
        ("namespace", 0, "x", 1, "y"): 13,
        ("namespace", 0, "x", 1, "z"): 13,
        ("namespace", 0, "x", 1, "z", 0): 13,
        ("namespace", 0, "x", 1, "z", 1): 14,
        ("namespace", 0, "d"): 16,
        ("namespace", 1): 17,
        ("namespace", 1, "x"): 18,
        ("namespace", 1, "y"): 20,
        ("namespace", 1, "sub"): 21,
        ("namespace", 1, "sub", "k"): 22,
        ("namespace", 1, "l"): 23,
        ("namespace", 1, "l", 0): 23,
        ("namespace", 1, "l", 0, "k"): 24,
        ("namespace", 1, "l", 1): 25,
        ("namespace", 1, "l", 1, "k"): 26,
        ("q.r",): 27,
        ("q.r", "v"): 28,
    }
    assert line_of(lines, ("identity", "firmware", "x")) == 4
    assert line_of(lines, ("none",)) == 1
    assert parse(TEXT.replace("\n", "\r\n"))[1] == lines


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*at, key))


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.integers(-(1 << 60), 1 << 60) | st.booleans() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> str:
    """As TOML; a list has a line for each item."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + "".join(f"\n {written(one)}, # ]}}'\"" for one in value) + "\n]"
    return quoted(value) if isinstance(value, str) else json.dumps(value)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_whatever_is_written_has_its_place(tables: dict[str, Any]) -> None:
    text = "".join(f"{quoted(key)} = {written(value)}\n" for key, value in tables.items())
    found, lines = parse(text)
    assert found == tables
    assert set(lines) == set(places(tables)) - {()}
    for place, line in lines.items():
        last = text.split("\n")[line - 1]
        assert not isinstance(place[-1], str) or quoted(place[-1]) in last


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a = 1\nb = \n", 2, "Invalid value"),
        ("a = 1\na = 2\n", 2, "Cannot overwrite a value"),
        ("a = 1\n\n[b\n", 3, "Expected ']'"),
        ("a = '", 1, "Expected"),
        ("a = " + "9" * 5000, 1, "Exceeds the limit"),
        ("a = " + "[" * 5000 + "]" * 5000, 1, "tables or lists within each other, too deep"),
    ],
)
def test_what_is_no_toml(text: str, line: int, reason: str) -> None:
    with pytest.raises(TomlError, match=reason) as refused:
        parse(text)
    assert refused.value.line == line


@pytest.mark.kills("the-later-of-two-words-counts")
def test_words_are_toml_whose_texts_need_no_quotes() -> None:
    words = ["disk=a b.img", "nsid=3", "read_only=true", "size=1G", 'x=["a", 2]', "y.z='q'", 'p="', "e=", "n=1\nb=2"]
    assert toml.of_words(words, "a=b") == {
        "disk": "a b.img",
        "nsid": 3,
        "read_only": True,
        "size": "1G",
        "x": ["a", 2],
        "y": {"z": "q"},
        "p": '"',
        "e": "",
        "n": "1\nb=2",
    }
    for bad in (["disk"], ["=3"], ["a=1", "a=2"], ["a\n=2", "b=3"]):
        with pytest.raises(ValueError, match=r"\w") as refused:
            toml.of_words(bad, "a=b")
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"^a.b: is given twice, 1 and x: give it once$"):
        toml.of_words(["a.b=1", "c=2", "a.b=x"], "a=b")
