"""Finds the code that a mutant changes by what it says and by the name of what it stands in, never by its file.

``within`` names a function, a class, or what a statement assigns (a table, a constant): ``Class.method``, and with the
module's last name before it, ``identify.Class.method``, where several modules have one. ``old`` is a part of its code:
an expression, statements that follow each other, keyword arguments, or items of a dict. Syntax trees are compared (in
C: tokens), so line breaks, comments and parentheses that change nothing do not matter. There must be exactly one such
place below src/, wherever that code has been moved.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from textwrap import dedent, shorten
from typing import Any, TypeVar

SOURCES = "src"
_WITHOUT_MEANING = ("ctx", "kind", "type_comment")  # of a node
_ITEMS = "items"  # of a dict, as if it were one of its node's fields
_NEAREST = 3

Parts = list[Any]  # nodes that follow each other; of a dict, pairs of them


class BadMutant(Exception):
    """A mutant that cannot be made, or proves nothing."""


@dataclass(frozen=True)
class Change:
    """What a mutant makes of a file."""

    file: Path  # from the project's root
    _text: Callable[[], str]  # which takes longer than to find the place

    @property
    def text(self) -> str:
        """The changed file."""
        return self._text()

    @property
    def module(self) -> str:
        return _module(self.file)


def _module(file: Path) -> str:
    parts = file.with_suffix("").parts[1:]  # without src
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --- Python


def change_python(root: Path, within: str, old: str, new: str) -> Change:
    """Raises BadMutant."""
    scopes = _python_scopes(root)
    forms = list(_forms(old, new))
    if not forms:
        raise BadMutant("old and new are not both an expression, statements, keyword arguments or items of a dict")
    found = [
        (scope, place, put)
        for scope in scopes
        if within in scope.names
        for parts, put in forms
        for place in _places(scope.node, parts)
    ]
    if len(found) != 1:
        where = [f"{scope.file}:{place.line}" for scope, place, _ in found]
        raise BadMutant(_why_not(within, old, where, scopes, lambda scope: _stands_in(scope, forms)))
    [(scope, place, put)] = found
    if _is_same(place.parts, put):
        raise BadMutant("it changes nothing")
    return Change(scope.file, partial(_with, scope.tree, place, put))


def _with(tree: ast.Module, place: _Place, parts: Parts) -> str:
    tree, place = deepcopy((tree, place))
    place.put(parts)
    return ast.unparse(tree)


def _stands_in(scope: _Scope, forms: list[tuple[Parts, Parts]]) -> bool:
    return any(True for parts, _ in forms for _ in _places(scope.node, parts))


def _forms(old: str, new: str) -> Iterator[tuple[Parts, Parts]]:
    """What the two texts can be. An expression is nothing else: as a statement it would be found once more."""
    for parse in (_expression, _statements, _keywords, _items):
        try:
            yield parse(old), parse(new)
        except SyntaxError:
            continue
        if parse is _expression:
            return


def _expression(text: str) -> Parts:
    if not text.strip():
        raise SyntaxError
    return [ast.parse(f"({text}\n)", mode="eval").body]


def _statements(text: str) -> Parts:
    return list(ast.parse(dedent(text)).body)


def _keywords(text: str) -> Parts:
    call = ast.parse(f"f({text}\n)", mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise SyntaxError
    return list(call.keywords)


def _items(text: str) -> Parts:
    items = ast.parse(f"{{{text}\n}}", mode="eval").body
    if not isinstance(items, ast.Dict):
        raise SyntaxError
    return list(zip(items.keys, items.values, strict=True))


@dataclass
class _Place:
    """``count`` children of ``owner``, from ``start`` on."""

    owner: ast.AST
    name: str  # of the field
    start: int
    count: int

    @property
    def line(self) -> int:
        first = self.parts[0]
        return getattr(first[0] if isinstance(first, tuple) else first, "lineno", 0)

    @property
    def parts(self) -> Parts:
        return _children(self.owner, self.name)[self.start : self.start + self.count]

    def put(self, parts: Parts) -> None:
        children = _children(self.owner, self.name)
        children[self.start : self.start + self.count] = parts
        if self.name == _ITEMS:
            vars(self.owner).update(keys=[key for key, _ in children], values=[value for _, value in children])
        elif isinstance(getattr(self.owner, self.name), list):
            setattr(self.owner, self.name, children or ([ast.Pass()] if self.name == "body" else []))
        else:
            setattr(self.owner, self.name, *children)


def _children(owner: ast.AST, name: str) -> Parts:
    if name == _ITEMS:
        return list(zip(owner.keys, owner.values, strict=True)) if isinstance(owner, ast.Dict) else []
    value = getattr(owner, name)
    return list(value) if isinstance(value, list) else [value]


def _places(scope: ast.AST, parts: Parts) -> Iterator[_Place]:
    count = len(parts)
    for owner in ast.walk(scope):
        for name in (*owner._fields, _ITEMS):
            children = _children(owner, name)
            for start in range(len(children) - count + 1):
                if _is_same(children[start : start + count], parts):
                    yield _Place(owner, name, start, count)


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, ast.AST):
        names = [name for name in one._fields if name not in _WITHOUT_MEANING]
        return all(_is_same(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)


@dataclass
class _Scope:
    """What ``within`` may name."""

    file: Path
    names: list[str]  # the first one with all of its module's name, the others with less and less of it
    tree: ast.Module
    node: ast.AST

    @property
    def pieces(self) -> list[str]:
        return [ast.unparse(node) for node in ast.walk(self.node) if isinstance(node, ast.expr | ast.stmt)]


@cache
def _python_scopes(root: Path) -> list[_Scope]:
    found = []
    for path in sorted((root / SOURCES).rglob("*.py")):
        file, tree = path.relative_to(root), ast.parse(path.read_text())
        module = _module(file).split(".")
        for name, node in _named(tree, ()):
            names = [".".join((*module[start:], *name)) for start in range(len(module) + 1)]
            found.append(_Scope(file, names, tree, node))
    return found


def _named(node: ast.AST, around: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ast.AST]]:
    """Functions, classes and assigned names, each with its qualified name."""
    for child in ast.iter_child_nodes(node):
        inner = around
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = (*around, child.name)
            yield inner, child
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            for target in child.targets if isinstance(child, ast.Assign) else [child.target]:
                if isinstance(target, ast.Name):
                    yield (*around, target.id), child
        if not isinstance(child, ast.expr):
            yield from _named(child, inner)


# --- C

_BLANK = r"(?:\s|/\*(?s:.*?)\*/|//[^\n]*)*"
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\w+|\S')
_FUNCTION = re.compile(r"^\w[^;{}=#]*?\b(\w+)\([^;{}]*\)\s*\{$.*?^\}", re.MULTILINE | re.DOTALL)


def change_c(root: Path, within: str, old: str, new: str) -> Change:
    """Raises BadMutant."""
    functions = _c_functions(root)
    pattern = re.compile(_spaced(old))
    found = [
        (function, match) for function in functions if within in function.names for match in function.find(pattern)
    ]
    if len(found) != 1:
        where = [f"{function.file}:{function.line(match)}" for function, match in found]
        raise BadMutant(_why_not(within, old, where, functions, lambda function: any(function.find(pattern))))
    [(function, match)] = found
    if re.fullmatch(_spaced(old), new):
        raise BadMutant("it changes nothing")
    text = function.source[: match.start()] + new + function.source[match.end() :]
    return Change(function.file, lambda: text)


def _spaced(text: str) -> str:
    """A regular expression of the same tokens, whatever stands between them."""
    tokens = _TOKEN.findall(text)
    words = [re.escape(token) for token in tokens]
    return rf"{_edge(tokens[0])}{_BLANK.join(words)}{_edge(tokens[-1])}"


def _edge(token: str) -> str:
    return r"\b" if re.fullmatch(r"\w+", token) else ""


@dataclass
class _Function:
    """A function in C."""

    file: Path
    names: list[str]
    source: str  # of the whole file
    start: int
    end: int

    def find(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        return pattern.finditer(self.source, self.start, self.end)

    def line(self, match: re.Match[str]) -> int:
        return self.source.count("\n", 0, match.start()) + 1

    @property
    def pieces(self) -> list[str]:
        return [line.strip() for line in self.source[self.start : self.end].splitlines()]


@cache
def _c_functions(root: Path) -> list[_Function]:
    return [
        _Function(path.relative_to(root), [match[1]], source, match.start(), match.end())
        for path in sorted((root / SOURCES).rglob("*.[ch]"))
        for source in [path.read_text()]
        for match in _FUNCTION.finditer(source)
    ]


# --- What to do when it is not there

_S = TypeVar("_S", _Scope, _Function)


def _why_not(within: str, old: str, where: list[str], scopes: list[_S], stands_in: Callable[[_S], bool]) -> str:
    """Why the old text does not say one place in the code, and where it may be meant to be."""
    old = shorten(old, 60)
    if where:
        return f"{old!r} stands {len(where)} times in {within}, not once: {', '.join(where)}"
    named = [scope for scope in scopes if within in scope.names]
    if named:
        why = f"{old!r} does not stand in {within}"
        near = get_close_matches(old, {piece for scope in named for piece in scope.pieces}, _NEAREST, cutoff=0.3)
    else:
        why = f"there is no {within}"
        near = get_close_matches(within, {scope.names[-1] for scope in scopes}, _NEAREST)
    others = [scope.names[0] for scope in scopes if stands_in(scope)]
    return f"{why}; nearest: {' | '.join(near) or 'nothing'}; it stands in: {', '.join(others) or 'no place'}"
