"""A mutant's place is found by what the code says, in whatever file and shape it is; where it is not, that is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.anchors import BadMutant, change_c, change_python

BASKET = '''
TABLE = {"apple": one, "pear": two}
MOST = 64 << 20


class Basket:
    """Holds fruit."""

    size = 3

    def put(self, fruit):
        if (fruit.weight
                > self.size):  # too heavy
            raise Heavy(fruit, why="it would break")
        elif fruit.weight == 0:
            return None
        self.held.append(fruit)
        return self.size - fruit.weight

    def empty(self):
        self.held.clear()
'''
LANE = """
static int
lane_put(struct lane *lane, int fruit)
{
    if (fruit > /* too heavy */ lane->size)
        return -1;
    lane->held[lane->count++] = fruit; // at the end
    return lane->size - fruit;
}

void lane_empty(struct lane *lane)
{
    lane->count = 0;
}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "shop/basket.py", BASKET)
    write(tmp_path, "native/lane.c", LANE)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / "src" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("within", "old", "new", "result"),
    [
        pytest.param("Basket.put", "fruit.weight > self.size", "False", "if False:", id="expression"),
        pytest.param("Basket.put", "((fruit).weight\n> self.size)", "x or y", "if x or y:", id="parentheses"),
        pytest.param("put", "fruit.weight > self.size", "False", None, id="class-left-out"),
        pytest.param("basket.Basket.put", "self.size - fruit.weight", "0", "return 0", id="module"),
        pytest.param("shop.basket.Basket.put", "return None", "return 1", "return 1", id="statement"),
        pytest.param("Basket.empty", "self.held.clear()", "", "def empty(self):\n        pass", id="body-left-empty"),
        pytest.param("Basket.put", 'why="it would break"', "", "raise Heavy(fruit)", id="keyword-left-out"),
        pytest.param("Basket.put", 'why="it would break"', "why=None, a=1", "fruit, why=None, a=1)", id="keywords"),
        pytest.param(
            "Basket.put", "if fruit.weight == 0:\n    return None", "", "break')\n        self.held", id="elif"
        ),
        pytest.param(
            "Basket.put",
            "self.held.append(fruit)\nreturn self.size - fruit.weight",
            "for _ in range(2):\n    self.held.append(fruit)",
            "        for _ in range(2):\n            self.held.append(fruit)\n\n",
            id="statements",
        ),
        pytest.param("TABLE", '"apple": one', "", "{'pear': two}", id="item-left-out"),
        pytest.param("TABLE", '"apple": one', '"apple": three', "{'apple': three, 'pear': two}", id="item"),
        pytest.param("TABLE", "two", "three", "{'apple': one, 'pear': three}", id="value"),
        pytest.param("MOST", "64 << 20", "1", "MOST = 1", id="constant"),
        pytest.param("Basket.size", "3", "4", "size = 4", id="constant-of-a-class"),
        pytest.param("Basket", "size = 3", "size = 4", "size = 4", id="class"),
    ],
)
def test_a_part_of_python_is_found_and_replaced(
    root: Path, within: str, old: str, new: str, result: str | None
) -> None:
    if result is None:
        with pytest.raises(BadMutant):
            change_python(root, within, old, new)
        return
    change = change_python(root, within, old, new)
    assert (change.file, change.module) == (Path("src/shop/basket.py"), "shop.basket")
    assert result in change.text
    compile(change.text, "basket", "exec")
    assert change_python(root, within, old, new).text == change.text  # nothing of the first one is left


@pytest.mark.parametrize(
    ("within", "old", "new", "result"),
    [
        pytest.param("lane_put", "fruit > lane->size", "0", "    if (0)\n        return -1;\n", id="comment"),
        pytest.param("lane_put", "return\n-1 ;", "return 0;", "size)\n        return 0;\n", id="space"),
        pytest.param("lane_put", "lane->held[lane->count++]=fruit;", "", "    \x20// at the end\n", id="left-out"),
        pytest.param("lane_empty", "lane->count = 0;", ";", "{\n    ;\n}\n", id="the-last-function"),
    ],
)
def test_a_part_of_c_is_found_and_replaced(root: Path, within: str, old: str, new: str, result: str) -> None:
    change = change_c(root, within, old, new)
    assert change.file == Path("src/native/lane.c")
    assert result in change.text


@pytest.mark.parametrize("name", ["a/b/moved.py", "moved.py", "shop/__init__.py"])
def test_python_that_is_moved_and_laid_out_anew_is_found(root: Path, name: str) -> None:
    (root / "src/shop/basket.py").unlink()
    moved = BASKET.replace("(fruit.weight\n                > self.size)", "fruit.weight > (self.size)")
    write(root, name, moved.replace("  # too heavy", "\n            # a word"))
    assert change_python(root, "Basket.put", "fruit.weight > self.size", "False").file == Path("src", name)


def test_c_that_is_moved_is_found(root: Path) -> None:
    (root / "src/native/lane.c").rename(root / "src/lanes.h")
    assert change_c(root, "lane_put", "fruit > lane->size", "0").file == Path("src/lanes.h")


def refusal(root: Path, within: str, old: str, new: str = "x") -> str:
    change = change_c if within.startswith("lane") else change_python
    with pytest.raises(BadMutant) as refused:
        change(root, within, old, new)
    return str(refused.value)


@pytest.mark.parametrize(
    ("within", "old", "says"),
    [
        pytest.param(
            "Basket.put",
            "self.size",
            ["'self.size' stands 2 times in Basket.put", "src/shop/basket.py:13", "src/shop/basket.py:18"],
            id="twice",
        ),
        pytest.param("Basket.put", "fruit.weight", ["stands 3 times"], id="thrice"),
        pytest.param(
            "Basket.put", "fruit.weight >= self.size", ["does not stand in", "fruit.weight > self.size"], id="changed"
        ),
        pytest.param(
            "Basket.put",
            "self.held.clear()",
            ["it stands in: shop.basket.Basket, shop.basket.Basket.empty"],
            id="elsewhere",
        ),
        pytest.param(
            "Basket.putt",
            "fruit.weight > self.size",
            [
                "there is no Basket.putt; nearest: Basket.put",
                "it stands in: shop.basket.Basket, shop.basket.Basket.put",
            ],
            id="renamed",
        ),
        pytest.param("Basket.put", "self.held.append(fruit", ["not both an expression"], id="half"),
        pytest.param("lane_put", "lane->size", ["2 times in lane_put", "lane.c:5", "lane.c:8"], id="c-twice"),
        pytest.param("lane_put", "fruit >= lane->size", ["does not stand in", "fruit > /* too"], id="c-changed"),
        pytest.param("lane_put", "lane->count = 0", ["it stands in: lane_empty"], id="c-elsewhere"),
        pytest.param("lane_pu", "fruit", ["no lane_pu; nearest: lane_put"], id="c-renamed"),
        pytest.param("lane_put", "ane->size", ["does not stand in"], id="c-part-of-a-word"),
    ],
)
def test_what_does_not_stand_there_once_is_refused_with_a_hint(
    root: Path, within: str, old: str, says: list[str]
) -> None:
    said = refusal(root, within, old)
    assert all(part in said for part in says), said


def test_a_name_of_several_modules_needs_the_modules(root: Path) -> None:
    write(root, "shop/barrel.py", BASKET)
    said = refusal(root, "Basket.put", "fruit.weight > self.size")
    assert "src/shop/barrel.py:12, src/shop/basket.py:12" in said
    assert change_python(root, "barrel.Basket.put", "fruit.weight > self.size", "x").module == "shop.barrel"


@pytest.mark.parametrize(("within", "old"), [("Basket.put", "fruit.weight > self.size"), ("lane_put", "return -1;")])
def test_what_changes_nothing_is_refused(root: Path, within: str, old: str) -> None:
    assert "changes nothing" in refusal(root, within, old, old.replace(" ", "  "))
