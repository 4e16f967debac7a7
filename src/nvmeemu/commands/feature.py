"""What a feature is: how Get Features and Set Features read and change its values. Base 1.4, 5.13 and 5.21."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

from nvmeemu.controller.request import Request, Result, Saving
from nvmeemu.controller.state import ControllerState
from nvmeemu.ports import Changes, Value
from nvmeemu.spec import (
    BROADCAST,
    FEATURE_OF_CONTROLLER,
    FEATURE_OF_NAMESPACE,
    FeatureCapability,
    FeatureEffect,
    GetFeatures,
    Oncs,
    Select,
    SetFeatures,
    Status,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.saved import of_controller


class Scope(Enum):
    """What has a value of its own."""

    CONTROLLER = "controller"
    NAMESPACE = "namespace"


class Feature:
    """A feature whose value is a dword: CDW11 of Set Features, DW0 of Get Features. A class of its own says what is
    otherwise.

    ``which`` tells several values of one controller apart: a number that CDW11 gives. The value of a namespace has its
    NSID for that. ``changes_capabilities``: another value changes what the controller can do. ``is_saveable``: Set
    Features may save it (SV), and it is back after a reset. ``oncs``: bits of ONCS that say to the host that there is
    this feature.
    """

    scope = Scope.CONTROLLER
    is_saveable = False
    is_changeable = True
    changes_capabilities = False
    oncs = Oncs(0)

    def __init__(self, fid: int) -> None:
        self.fid = fid

    @property
    def number(self) -> int:
        """The Feature Identifier."""
        return self.fid

    def is_offered(self, controller: ControllerState) -> bool:
        """Whether this controller has the feature."""
        return True

    def admit(self, request: Request[GetFeatures] | Request[SetFeatures]) -> None:
        """Raise CommandFailed for what neither Get nor Set Features may ask of it."""

    def default(self, controller: ControllerState, which: int) -> int:
        """The value that it has until the host sets another."""
        return 0

    def which(self, controller: ControllerState, cdw11: int) -> int:
        """Which of its values is meant. Raises CommandFailed if there is no such one."""
        return 0

    def check(self, controller: ControllerState, cdw11: int) -> None:
        """Raise CommandFailed for a value that the feature cannot have."""

    def apply(self, controller: ControllerState) -> None:
        """A value has changed."""

    # --- its values

    def value(self, controller: ControllerState, which: int = 0) -> int:
        """The current value."""
        found = controller.features.get((self.fid, which))
        return self.saved(controller, which) if found is None else found

    def saved(self, controller: ControllerState, which: int) -> int:
        """The value after a reset."""
        found = controller.saved_features.get((self.fid, which))
        return self.default(controller, which) if found is None else found

    def put(self, controller: ControllerState, which: int, value: int) -> None:
        """Set the value from now on."""
        controller.features[self.fid, which] = value

    @property
    def capabilities(self) -> FeatureCapability:
        """The answer to Select.CAPABILITIES."""
        found = FeatureCapability(0)
        if self.is_saveable:
            found |= FeatureCapability.SAVEABLE
        if self.scope is Scope.NAMESPACE:
            found |= FeatureCapability.PER_NAMESPACE
        if self.is_changeable:
            found |= FeatureCapability.CHANGEABLE
        return found

    @property
    def effects(self) -> FeatureEffect:
        """Its entry in the Feature Identifiers Supported and Effects log. Base 2.0, 5.16.1.18."""
        scope = FEATURE_OF_NAMESPACE if self.scope is Scope.NAMESPACE else FEATURE_OF_CONTROLLER
        return FeatureEffect(fsupp=True, ccc=self.changes_capabilities, fsp=scope)

    # --- what the commands do

    def get(self, request: Request[GetFeatures], select: int) -> int:
        """Answer Get Features with the current, default or saved value. NSID counts only for values of namespaces."""
        controller, command = request.controller, request.command
        if self.scope is Scope.NAMESPACE:
            which = controller.namespaces[command.nsid].nsid
        else:
            which = self.which(controller, command.cdw11)
        values = {Select.CURRENT: self.value, Select.DEFAULT: self.default, Select.SAVED: self.saved}
        return self.answer(request, values[Select(select)](controller, which))

    def answer(self, request: Request[GetFeatures], value: int) -> int:
        """Give the host a value; DW0."""
        return value

    def set(self, request: Request[SetFeatures]) -> Result:
        """Do what Set Features asks for."""
        controller, command = request.controller, request.command
        targets = self._targets(controller, command)
        self.check(controller, command.cdw11)
        if self.scope is Scope.CONTROLLER:
            targets = [self.which(controller, command.cdw11)]
        value = self.given(request)
        if not command.sv:
            return self.change(controller, targets, value)
        saved = {(self.fid, which): value for which in targets}

        def change() -> Result:
            controller.saved_features.update(saved)
            return self.change(controller, targets, value)

        scope = of_controller(controller.cntlid)
        return Saving({(scope, _name(self.fid, which)): self.freeze(value) for which in targets}, change)

    def _targets(self, controller: ControllerState, command: SetFeatures) -> list[int]:
        if self.scope is Scope.NAMESPACE:
            return [namespace.nsid for namespace in controller.namespaces.addressed(command.nsid)]
        if command.nsid not in (0, BROADCAST):
            raise CommandFailed(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, location=(4, 0))
        return []

    def given(self, request: Request[SetFeatures]) -> int:
        """The value that the host gives. Raises CommandFailed if it cannot be."""
        return request.command.cdw11

    def freeze(self, value: int) -> Value:
        """The value as the saved state has it."""
        return value

    def thaw(self, saved: Value) -> int:
        """The value that the saved state has. Raises ValueError if it cannot be."""
        if not isinstance(saved, int) or not 0 <= saved < 1 << 32:
            raise ValueError(f"{saved!r} is no dword")
        return saved

    def change(self, controller: ControllerState, targets: list[int], value: int) -> Result:
        """The values of ``targets`` become this one."""
        for which in targets:
            self.put(controller, which, value)
        self.apply(controller)
        return 0


class DataFeature(Feature):
    """A feature whose value is a data structure of ``size`` bytes, in memory of the host; here it is a number, too."""

    size = 0

    def encode(self, controller: ControllerState, value: int) -> bytes:
        """The structure."""
        return value.to_bytes(self.size, "little")

    def decode(self, controller: ControllerState, data: bytes) -> int:
        """The value in it. Raises CommandFailed if it cannot be."""
        raise NotImplementedError

    def freeze(self, value: int) -> Value:
        return value.to_bytes(self.size, "little")

    def thaw(self, saved: Value) -> int:
        if not isinstance(saved, bytes) or len(saved) != self.size:
            raise ValueError(f"{saved!r} is no structure of {self.size} bytes")
        return int.from_bytes(saved, "little")

    def answer(self, request: Request[GetFeatures], value: int) -> int:
        request.send(self.encode(request.controller, value))
        return 0

    def given(self, request: Request[SetFeatures]) -> int:
        return self.decode(request.controller, request.receive(self.size))


def _name(fid: int, which: int) -> str:
    """Of a value in the saved state, in the scope of its controller."""
    return f"feature.{fid:02x}.{which}"


def forgotten_values(controller: ControllerState, fid: int, which: int) -> Changes:
    """The changes that leave no saved value."""
    key = of_controller(controller.cntlid), _name(fid, which)
    return {} if controller.subsystem.state.get(*key) is None else {key: None}


_NAME = re.compile(r"feature\.([0-9a-f]{2})\.([0-9]+)")


def saved_values(controller: ControllerState) -> Iterator[tuple[int, int, Value]]:
    """FID, which and value of all that the host has saved."""
    for name, value in controller.subsystem.state.scope(of_controller(controller.cntlid)).items():
        if found := _NAME.fullmatch(name):
            yield int(found[1], 16), int(found[2]), value


def invalid_cdw11() -> CommandFailed:
    """The value that CDW11 gives cannot be."""
    return CommandFailed(Status.INVALID_FIELD, location=(44, 0))
