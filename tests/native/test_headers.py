"""The engine's headers: one for each module, without circles; a file includes what it names, and nothing else."""

from __future__ import annotations

import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from nvmeemu.engine.native import generate

NATIVE = Path(generate.__file__).parent
GENERATED = "nvme_spec.h"
FOR_CFFI = "api.h"  # which takes no directives: C sees it through interface.h
FILES = sorted(path.name for path in NATIVE.glob("*.[ch]") if path.name != FOR_CFFI)
HEADERS = [name for name in FILES if name.endswith(".h")]


TEXTS = {path.name: path.read_text() for path in NATIVE.glob("*.[ch]")} | {GENERATED: generate.header()}


def code_of(name: str) -> str:
    """Without comments, strings and directives to include."""
    code = re.sub(r"/\*.*?\*/", " ", TEXTS[name], flags=re.DOTALL)
    return re.sub(r'"(\\.|[^"\\])*"', " ", re.sub(r"#include.*", "", code))


def included(name: str) -> set[str]:
    return set(re.findall(r'#include "(\w+\.h)"', TEXTS[name]))


def declared(name: str) -> set[str]:
    """The macros, functions, types and enumerators that a header declares; not what it only announces
    (``struct lane;``)."""
    code = code_of(name)
    names = {macro for macro in re.findall(r"#define\s+(\w+)", code) if not macro.startswith("NVMEEMU_")}
    names |= {f"{kind} {tag}" for kind, tag in re.findall(r"\b(struct|enum)\s+(?:__attribute__\S+\s+)?(\w+)\s*{", code)}
    for body in re.findall(r"\benum\s+\w*\s*{([^}]*)}", code):
        names |= set(re.findall(r"\b[A-Z]\w+", body))
    code = re.sub(r"^#.*(\\\n.*)*", "", code, flags=re.MULTILINE)
    while "{" in code:
        code = re.sub(r"{[^{}]*}", ";", code)
    return names | {called for called in re.findall(r"\b(\w+)\s*\([^;]*\)\s*;", code) if called != "_Static_assert"}


DECLARED = {name: declared(FOR_CFFI if name == "interface.h" else name) for name in (*HEADERS, GENERATED)}


def named(name: str) -> set[str]:
    """The headers whose declarations this file names."""
    code = code_of(name)

    def is_named(one: str) -> bool:
        kind, _, tag = one.partition(" ")
        if tag and re.search(rf"^{kind} {tag};", code, re.MULTILINE):
            return False  # announced here
        return re.search(rf"\b{kind}\s+{tag}\b" if tag else rf"\b{one}\b", code) is not None

    headers = {header for header, names in DECLARED.items() if any(map(is_named, names))}
    if "engine->" in code:  # its members, of which no name tells whose they are
        headers.add("engine.h")
    if "##" in code:  # names that are put together, of fields of the specification's
        headers.add(GENERATED)
    return headers - {name}


def test_there_is_no_circle() -> None:
    TopologicalSorter({name: included(name) for name in HEADERS}).prepare()  # CycleError names the circle


@pytest.mark.parametrize("name", [name for name in FILES if name != "interface.h"])
def test_a_file_includes_what_it_names_and_nothing_else(name: str) -> None:
    assert included(name) == named(name)


def test_each_header_compiles_alone(tmp_path: Path) -> None:
    (tmp_path / GENERATED).write_text(TEXTS[GENERATED])
    for name in HEADERS:
        alone = tmp_path / "alone.c"
        alone.write_text(f'#include "{name}"\n#include "{name}"\n')
        options = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{tmp_path}", f"-iquote{NATIVE}")
        subprocess.run(("cc", *options, alone), check=True)
