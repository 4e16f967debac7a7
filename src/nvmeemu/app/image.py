"""``nvmeemu image``: tells of an image and its companion, checks whether they fit, and makes them fit."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nvmeemu import toml
from nvmeemu.app import journals
from nvmeemu.app.arguments import Parser, complain, tell
from nvmeemu.app.drive.check import BadKey, checked
from nvmeemu.app.drive.description import block_format
from nvmeemu.app.drive.keys import NamespaceTable
from nvmeemu.backend import Backend, BackendError, BadRequest, in_words, is_memory, open_backend, path_of
from nvmeemu.backend.companion import Companion, CompanionError, beside
from nvmeemu.subsystem.formats import Format
from nvmeemu.subsystem.formatter import complete
from nvmeemu.subsystem.media import BlockState

_PROGRAM = "nvmeemu image"
_IMAGE = """\
Tell, check and repair what lies beside an image: its companion, with the metadata of its blocks, what is deallocated
or uncorrectable, and the format (docs/companion.md); and the journal of a server that was killed (docs/atomic.md). No
server may have the image open meanwhile.
"""
_REPAIR = """\
Make an image and its companion fit: complete the writes and the Format that the end of a server has interrupted, and
take over the size of the image. Where the headers of the companion are damaged, give the format that it has, by the
keys of [[namespace]] in a drive file (docs/drive-file.md); blocks and metadata are kept:

  nvmeemu image repair disk.img block_size=512 metadata=8 protection=1
"""


def image(words: Sequence[str]) -> int:
    """Run the command. Returns its exit status: 0, 1 for what failed or does not fit, 2 for bad use."""
    parser = _parser()
    arguments = parser.parse_args(words)
    try:
        return tell(_PROGRAM, "".join(f"{line}\n" for line in arguments.run(arguments)))
    except BadRequest as error:
        status, why = 2, str(error)
    except (BackendError, _Unfit) as error:
        status, why = 1, str(error)
    except OSError as error:
        status, why = 1, f"{arguments.image}: {error.strerror or error}"
    return complain(f"{_PROGRAM} {arguments.command}", why, status)


def _parser() -> Parser:
    parser = Parser(prog=_PROGRAM, description=_IMAGE)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser, required=True)

    def add(name: str, run: Callable[[argparse.Namespace], Iterator[str]], text: str, about: str = "") -> Parser:
        found: Parser = commands.add_parser(
            name, help=text, description=about or text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        found.add_argument("image", metavar="IMAGE", help="a file or a block device, as in --disk")
        found.add_argument("--companion", metavar="FILE", help="its companion (the image's path and .nvme)")
        found.set_defaults(run=run)
        return found

    add("info", _info, "tell the format, and what the blocks are")
    add("check", _check, "tell whether the two fit; the exit status is 1 if they do not")
    repair = add("repair", _repair, "make them fit", _REPAIR)
    repair.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="the format, where no header says it")
    return parser


class _Unfit(Exception):
    """An image and its companion do not fit. The text is one line and says what to do."""


# --- the commands


def _info(arguments: argparse.Namespace) -> Iterator[str]:
    with _Pair(arguments, read_only=True) as pair:
        yield f"image: {arguments.image}, {in_words(pair.backend.size)}"
        companion = pair.companion
        if pair.journal is not None:
            yield f"journal: {pair.journal}"
        if companion is None:
            yield "companion: none: a plain disk"
            return
        yield f"companion: {pair.path}"
        yield f"format: {_in_words(companion.format)}"
        numbers = dict.fromkeys(BlockState, 0)
        for state, _, blocks in companion.states(0, companion.blocks):
            numbers[state] += blocks
        yield f"blocks: {companion.blocks}, " + ", ".join(
            f"{number} {state.name.lower()}" for state, number in numbers.items()
        )
        if (problem := pair.problem) is not None:
            yield f"they do not fit: {problem}"


def _check(arguments: argparse.Namespace) -> Iterator[str]:
    with _Pair(arguments, read_only=True) as pair:
        if (problem := pair.problem) is not None:
            raise _Unfit(f"{arguments.image}: {problem}: repair it with {_PROGRAM} repair {arguments.image}")
        yield f"{arguments.image}: " + ("a plain disk" if pair.companion is None else "the two fit")


def _repair(arguments: argparse.Namespace) -> Iterator[str]:
    wanted = _wanted(arguments)
    with _Pair(arguments, read_only=False, instead=wanted) as pair:
        companion = pair.companion
        if pair.journal is not None:
            yield f"{pair.journal}: {journals.redo(pair.journal, pair.backend, companion)} writes are completed"
            os.unlink(pair.journal)
            if companion is None:
                return
        if companion is None:
            raise _Unfit(f"{arguments.image} has no companion {pair.path}: there is nothing to repair")
        if pair.is_rebuilt:
            yield f"{pair.path}: its headers are new: {_in_words(companion.format)}"
        if (problem := pair.problem) is None:
            yield f"{arguments.image}: the two fit"
            return
        companion.cut(pair.backend.size)
        complete(pair.backend, companion)
        companion.flush()
        yield f"{arguments.image}: repaired: {problem}"


def _wanted(arguments: argparse.Namespace) -> Format | None:
    """The format that the keys say. Raises BadRequest."""
    if not arguments.keys:
        return None
    try:
        values = checked("namespace", {"disk": arguments.image, **toml.of_words(arguments.keys, "metadata=8")})
        return block_format(NamespaceTable(**values))
    except (BadKey, ValueError) as error:
        raise BadRequest(str(error)) from None


# --- both together


class _Pair:
    """An image and its companion, open. ``instead``: the format, if the companion's headers are damaged. Raises
    BackendError."""

    def __init__(self, arguments: argparse.Namespace, read_only: bool, instead: Format | None = None) -> None:
        if is_memory(arguments.image):
            raise BadRequest(f"{arguments.image} is memory, and has no companion")
        self.path = arguments.companion or beside(path_of(arguments.image))
        self.is_rebuilt = False
        self.backend: Backend = open_backend(arguments.image, read_only=read_only)
        try:
            self.companion = self._open(read_only, instead, arguments.companion is not None)
        except BaseException:
            self.backend.close()
            raise

    def _open(self, read_only: bool, instead: Format | None, is_named: bool) -> Companion | None:
        try:
            return Companion.open(self.path, read_only)
        except FileNotFoundError:
            if is_named:
                raise CompanionError(f"{self.path}, the companion, does not exist") from None
            return None
        except CompanionError:
            if instead is None or Companion.is_readable(self.path):
                raise
        self.is_rebuilt = True
        return Companion.rebuild(self.path, instead, self.backend.size)

    def __enter__(self) -> _Pair:
        return self

    def __exit__(self, *exception: object) -> None:
        self.backend.close()
        if self.companion is not None:
            self.companion.close()

    @property
    def journal(self) -> str | None:
        """What a server that was killed has left."""
        path = self.path + journals.SUFFIX
        return path if os.path.exists(path) else None

    @property
    def problem(self) -> str | None:
        """Why the two do not fit; None: they do."""
        companion, size = self.companion, self.backend.size
        if self.journal is not None:
            return "its server was killed, and writes may have been under way"
        if companion is None:
            return None
        if (intention := companion.contents.intention) is not None:
            return f"a Format to {_in_words(intention)} was interrupted"
        if companion.contents.size != size:
            return f"the image has {in_words(size)}, and its companion is for {in_words(companion.contents.size)}"
        if Path(self.path).stat().st_size < companion.end:
            return "the companion has become shorter"
        return None


def _in_words(format: Format) -> str:
    metadata = "no metadata"
    if format.metadata_size:
        place = "in the same buffer" if format.is_extended else "apart"
        metadata = f"{format.metadata_size} bytes of metadata {place}"
    of = format.protection
    if of is None:
        return f"{format.data_size} bytes, {metadata}"
    bits = {8: 16}.get(of.size, 32 if of.guard == 1 else 64)
    tag = f", a storage tag of {of.storage_tag_size} bits" if of.storage_tag_size else ""
    where = "first" if of.is_first else "last"
    return f"{format.data_size} bytes, {metadata}, protection type {of.type}, {where}, a guard of {bits} bits{tag}"
