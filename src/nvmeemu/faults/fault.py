"""A fault: what it is about, where and when it happens, and what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from nvmeemu.faults.action import ANSWERED, Action
from nvmeemu.faults.actions import ACTIONS
from nvmeemu.faults.match import Match, is_read_only
from nvmeemu.faults.passage import Passage
from nvmeemu.faults.places import OF_COMMANDS, PLACES, At
from nvmeemu.faults.when import Trigger, When
from nvmeemu.faults.words import FaultError, check_pairs, choice, plain, table
from nvmeemu.spec import names
from nvmeemu.text import plain as in_one_line

LONGEST_NAME = 200  # characters
_LONGEST_WORDS = 1000  # likewise, of what a list of actions says
Do = str | Mapping[str, Any]


class Fault:
    """One fault. Raises FaultError, with the reason, for what cannot be.

        Fault(match={"opcode": "write", "lba": "100-199"}, at="backend", do={"error": "EIO"}, when={"nth": 3})

    ``do`` is a name, a table (an action with its argument and options), or a list of these. ``at`` may be left out
    where the action says where it works. The same words are used in a TOML file and on the control socket.
    ``seen`` and ``hits`` count how often it matched, and fired.
    """

    def __init__(
        self,
        match: Mapping[str, Any] | None = None,
        at: str | None = None,
        do: Do | Sequence[Do] = "",
        when: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        check_pairs(table(match or {}, "match"))
        matched = table(plain(match or {}), "match")
        actions = plain(do)
        written = actions if isinstance(actions, list) else [actions]
        if not written or written == [""]:
            raise FaultError(f"do: say what shall happen: {', '.join(ACTIONS)}")
        self.actions = [_action(one) for one in written]
        self.at = self.actions[0].places[0] if at is None else At(choice(at, "at", PLACES))
        do = written if len(written) > 1 else written[0]
        self._written = {"match": matched, "at": self.at.value, "do": do}
        self._all_written = written
        for action in self.actions:
            _check(action, self.at, matched)
        if self.at == At.REGISTER:
            matched = _access(matched, self.actions)
        self.match = Match(self.at, matched)
        if self.at in OF_COMMANDS:
            self._check_commands()
        if any(action.history for action in self.actions):
            self.match.queues = None  # whatever is written has to be seen
        self.when = When.of(table(when or {}, "when"))
        if self.at == At.NOW and set(self.when.as_table()) - {"after_seconds", "probability", "seed"}:
            raise FaultError('when: "now" comes once: there are only after_seconds and probability')
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not name.isprintable():
            raise FaultError(f"name: {name!r} is not text of one line, at most {LONGEST_NAME} characters long")
        self.name = name
        self.words = _cut(", ".join(" ".join(_words("", one)) for one in written))
        """What it does, in a line: ``status=write_fault dnr=true, hang``."""
        self.id = 0  # given when it is added
        self.trigger: Trigger | None = None

    def _check_commands(self) -> None:
        """Raise FaultError if it could do nothing to any command that it is about."""
        for action in self.actions:
            if not any(action.concerns(self.at, opcode) for _, opcode in self.match.commands):
                raise FaultError(f"{action.name} at {self.at}: no command that match asks for {action.wanted(self.at)}")

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From a table with these words (TOML, JSON). Raises FaultError."""
        known = ("match", "at", "do", "when", "name")
        value = table(value, "a fault")
        for key in value:
            if key not in known:
                raise FaultError(f"{key}: a fault has {', '.join(known)}")
        return cls(**value)

    def as_table(self) -> dict[str, Any]:
        """What ``of`` would make the same fault of."""
        named = {"name": self.name} if self.name else {}
        return {**named, **self._written, "when": self.when.as_table()}

    def meets(self, passage: Passage) -> bool:
        """Whether it is about this, and all that it does can be done there."""
        if passage not in self.match:
            return False
        command = passage.command
        if command is not None and not all(action.concerns(self.at, command.opcode) for action in self.actions):
            return False
        return all(action.applies(passage) for action in self.actions)

    @property
    def seen(self) -> int:
        return self.trigger.seen if self.trigger else 0

    @property
    def hits(self) -> int:
        return self.trigger.hits if self.trigger else 0

    def __str__(self) -> str:
        """As ``nvmeemu ctl fault add`` takes it: ``match.opcode=write at=execute do.status=write_fault when.nth=3``."""
        parts = [*_words("match", self._written["match"]), f"at={self.at}"]
        parts += [word for one in self._all_written for word in _words("do", one)]
        text = " ".join([*parts, *_words("when", self.when.as_table())])
        return in_one_line(_cut(f'"{self.name}": {text}' if self.name else text))

    def __repr__(self) -> str:
        return f"Fault({', '.join(f'{key}={value!r}' for key, value in self.as_table().items() if value)})"


def _words(key: str, value: Any) -> Iterator[str]:
    """As on the command line of ``ctl``, without its ``do.``."""
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _words(f"{key}.{inner}" if key else inner, one)
    elif value is True or not key:
        yield key or str(value)
    else:
        yield f"{key}={str(value).lower() if value is False else value}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_WORDS else f"{text[: _LONGEST_WORDS - 4]} ..."


def _action(written: Do) -> Action:
    if isinstance(written, str):
        written = {choice(written, "do", tuple(ACTIONS)): True}
    words = {names.choice(ACTIONS, key) or key: value for key, value in table(written, "do").items()}
    named = [key for key in words if key in ACTIONS]
    if len(named) > 1:
        raise FaultError(f"do: {' and '.join(named)} are {len(named)} actions: make a list of them")
    if not named:
        raise FaultError(f"do: none of {', '.join(map(repr, words))} is an action: {', '.join(ACTIONS)}")
    kind = ACTIONS[named[0]]
    argument = words.pop(named[0])
    for key in words:
        if key not in kind.options:
            options = f"it has {', '.join(kind.options)}" if kind.options else "it has none"
            raise FaultError(f"do.{key}: no option of {kind.name}: {options}")
    if argument is True and kind.example:
        raise FaultError(f"do: {kind.name} needs a value, for example do.{kind.name}={kind.example}")
    return kind(argument, words)


def _check(action: Action, at: At, matched: Mapping[str, Any]) -> None:
    if at not in action.places:
        reason = action.reasons.get(at, f"it works at {', '.join(action.places)}")
        raise FaultError(f"{action.name} at {at}: {reason}")
    action.check(at, matched)


def _access(matched: dict[str, Any], actions: Sequence[Action]) -> dict[str, Any]:
    """Only what can be done to reads is done to them, and nothing to writes that change nothing."""
    changing = [action for action in actions if action.changes]
    if changing and "register" in matched and is_read_only(matched["register"]):
        if matched.get("access") == "write" or not all(action.reads for action in changing):
            raise FaultError(f"{changing[0].name} at register: {matched['register']} is read-only, no write changes it")
        return {**matched, "access": "read"}
    if all(action.reads for action in actions):
        return matched
    if matched.get("access") == "read":
        name = next(action.name for action in actions if not action.reads)
        raise FaultError(f"{name} at register: {ANSWERED}; corrupt or set what is read")
    return {**matched, "access": "write"}
