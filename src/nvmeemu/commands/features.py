"""Get Features and Set Features: the table of features, and what setting each of them does.

Base 1.4, 5.13 and 5.21. No feature is saveable: every value is back at its default after a reset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvmeemu.controller.events import Event
from nvmeemu.controller.request import Pending, Request, Result
from nvmeemu.controller.state import ControllerState
from nvmeemu.spec import (
    BROADCAST,
    CriticalWarning,
    EventType,
    FeatureId,
    GetFeatures,
    LogId,
    SetFeatures,
    SmartEvent,
    Status,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.health import WARNING_TEMPERATURE
from nvmeemu.subsystem.media import FlushMedia, Media

_AGGREGATION_TIME = 100e-6  # seconds
_COALESCING_DISABLE = 1 << 16  # CD
_CURRENT, _DEFAULT, _SAVED, _CAPABILITIES = range(4)


@dataclass(frozen=True)
class Feature:
    """A feature: ``which`` tells several values of one FID apart (by CDW11), ``default`` is the value of each.

    ``check`` raises CommandFailed for values that cannot be; ``data`` is the size of its data structure in bytes.
    """

    default: Callable[[ControllerState, int], int] = lambda controller, which: 0
    which: Callable[[int], int] | None = None
    check: Callable[[ControllerState, int], None] = lambda controller, cdw11: None
    is_changeable: bool = True
    is_per_namespace: bool = False
    data: int = 0

    def select(self, controller: ControllerState, cdw11: int) -> int:
        """Which of its values CDW11 of a Get or Set Features means. Raises CommandFailed."""
        if self.which is None:
            return 0
        self.check(controller, cdw11)
        return self.which(cdw11)


def value(controller: ControllerState, fid: FeatureId, which: int = 0) -> int:
    """The current value of a feature."""
    found = controller.features.get((fid, which))
    return FEATURES[fid].default(controller, which) if found is None else found


def _look_up(controller: ControllerState, fid: int) -> tuple[FeatureId, Feature]:
    known = fid in FEATURES and (fid != FeatureId.VOLATILE_WRITE_CACHE or controller.has_write_cache)
    if not known:
        raise CommandFailed(Status.INVALID_FIELD, location=(40, 0))
    return FeatureId(fid), FEATURES[FeatureId(fid)]


def get_features(request: Request[GetFeatures]) -> Result:
    """Base 1.4, 5.13. NSID counts only for features of a namespace."""
    controller, command = request.controller, request.command
    if command.fid in controller.vendor_features:
        return controller.vendor_features[command.fid].get(request)
    fid, feature = _look_up(controller, command.fid)
    if command.sel == _CAPABILITIES:
        return int(feature.is_per_namespace) << 1 | int(feature.is_changeable) << 2
    if command.sel > _CAPABILITIES:
        raise CommandFailed(Status.INVALID_FIELD, location=(41, 0))
    if feature.is_per_namespace:
        which = controller.namespaces[command.nsid].nsid
    else:
        which = feature.select(controller, command.cdw11)
    found = value(controller, fid, which) if command.sel == _CURRENT else feature.default(controller, which)
    if feature.data:
        request.send(_encode(controller, fid, found, feature.data))
        return 0
    return found


def set_features(request: Request[SetFeatures]) -> Result:
    """Base 1.4, 5.21."""
    controller, command = request.controller, request.command
    if command.fid in controller.vendor_features:
        return controller.vendor_features[command.fid].set(request)
    fid, feature = _look_up(controller, command.fid)
    if command.sv:
        raise CommandFailed(Status.FEATURE_NOT_SAVEABLE, location=(43, 7))
    if not feature.is_changeable:
        raise CommandFailed(Status.FEATURE_NOT_CHANGEABLE, location=(40, 0))
    if feature.is_per_namespace:
        return _set_for_namespaces(controller, fid, feature, command)
    if command.nsid not in (0, BROADCAST):
        raise CommandFailed(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, location=(4, 0))
    feature.check(controller, command.cdw11)
    if fid == FeatureId.NUMBER_OF_QUEUES:
        return value(controller, fid)  # the answer is what is allocated, whatever was asked
    if fid == FeatureId.TEMPERATURE_THRESHOLD:
        controller.features[fid, feature.select(controller, command.cdw11)] = command.cdw11 & 0xFFFF
        report_warnings(controller)
        return 0
    if feature.data:
        data = request.receive(feature.data)
        controller.features[fid, 0] = _decode(controller, fid, data)
        return 0
    if fid == FeatureId.VOLATILE_WRITE_CACHE:
        return _set_write_cache(controller, command.cdw11)
    controller.features[fid, feature.select(controller, command.cdw11)] = command.cdw11
    if fid == FeatureId.ASYNC_EVENT_CONFIGURATION:
        report_warnings(controller)
    elif fid in (FeatureId.INTERRUPT_COALESCING, FeatureId.INTERRUPT_VECTOR_CONFIGURATION):
        _coalesce(controller)
    return 0


def _coalesce(controller: ControllerState) -> None:
    """Base 1.4, 5.21.1.8 and 5.21.1.9."""
    setting = value(controller, FeatureId.INTERRUPT_COALESCING)
    vectors = [
        vector
        for vector in range(controller.limits.vectors)
        if not value(controller, FeatureId.INTERRUPT_VECTOR_CONFIGURATION, vector) & _COALESCING_DISABLE
    ]
    controller.coalescing.configure((setting >> 8 & 0xFF) * _AGGREGATION_TIME, (setting & 0xFF) + 1, vectors)


def _set_for_namespaces(controller: ControllerState, fid: FeatureId, feature: Feature, command: SetFeatures) -> Result:
    namespaces = controller.namespaces.addressed(command.nsid)
    feature.check(controller, command.cdw11)
    for namespace in namespaces:
        controller.features[fid, namespace.nsid] = command.cdw11
    return 0


def _set_write_cache(controller: ControllerState, cdw11: int) -> Result:
    """Off: writes from now on are durable, and the command completes when those before are; if that fails, the cache
    is as it was."""
    before = value(controller, FeatureId.VOLATILE_WRITE_CACHE)

    def put(new: int) -> None:
        controller.features[FeatureId.VOLATILE_WRITE_CACHE, 0] = new
        controller.configure_engine(write_cache=bool(new & 1))

    put(cdw11)
    if cdw11 & 1:
        return 0
    media = [namespace.media for namespace in controller.namespaces]
    return flushed(media, is_abortable=False, undo=lambda: put(before))


def flushed(media: Sequence[Media], *, is_abortable: bool = True, undo: Callable[[], None] = lambda: None) -> Result:
    """Make what was written to all of them durable, one after the other. Once one was begun it cannot be aborted."""
    if not media:
        return 0
    return Pending(
        media[0], FlushMedia(), lambda _: flushed(media[1:], is_abortable=False, undo=undo), is_abortable, undo
    )


def critical_warnings(controller: ControllerState) -> CriticalWarning:
    """Critical Warning of the SMART log: the state of the device by the thresholds of the host."""
    over, under = (value(controller, FeatureId.TEMPERATURE_THRESHOLD, which) for which in (0, 1))
    return controller.health.warnings(over, under)


def report_warnings(controller: ControllerState) -> None:
    """The device's health, a threshold or what the host wants to hear has changed: tell it of each new warning that
    it has asked for. Base 1.4, 5.21.1.11, SMART / Health Critical Warnings."""
    asked = CriticalWarning(value(controller, FeatureId.ASYNC_EVENT_CONFIGURATION) & 0b111)
    wanted = critical_warnings(controller) & asked
    for warning in wanted & ~controller.told:
        controller.events.report(Event(EventType.SMART, _SMART_EVENTS[warning], LogId.SMART))
    controller.told = wanted


_SMART_EVENTS = {
    CriticalWarning.SPARE: SmartEvent.SPARE,
    CriticalWarning.TEMPERATURE: SmartEvent.TEMPERATURE,
    CriticalWarning.RELIABILITY: SmartEvent.RELIABILITY,
}


def _now(controller: ControllerState) -> int:
    """Milliseconds since the last reset."""
    return int((controller.clock.now() - controller.reset_at) * 1000)


def _encode(controller: ControllerState, fid: FeatureId, found: int, size: int) -> bytes:
    """The data structure of a feature. The timestamp is kept as its distance from our clock, in milliseconds;
    bits 51:49 of what the host gets say whether it was ever set (Base 1.4, 5.21.1.14, Timestamp Origin)."""
    if fid == FeatureId.TIMESTAMP:
        was_set = (fid, 0) in controller.features
        found = _now(controller) + found & (1 << 48) - 1 | int(was_set) << 49
    return found.to_bytes(size, "little")


def _decode(controller: ControllerState, fid: FeatureId, data: bytes) -> int:
    if fid == FeatureId.TIMESTAMP:
        return int.from_bytes(data[:6], "little") - _now(controller)
    if data[0] > 1:  # Host Behavior Support: Advanced Command Retry Enable is 0 or 1
        raise CommandFailed(Status.INVALID_FIELD)
    return int.from_bytes(data[:1], "little")


def _invalid_cdw11() -> CommandFailed:
    return CommandFailed(Status.INVALID_FIELD, location=(44, 0))


def _check_power(controller: ControllerState, cdw11: int) -> None:
    if cdw11 & 0x1F:  # only power state 0 exists
        raise _invalid_cdw11()


def _check_temperature(controller: ControllerState, cdw11: int) -> None:
    sensor, kind = cdw11 >> 16 & 0xF, cdw11 >> 20 & 3
    if sensor not in (0, 0xF) or kind > 1:  # the composite temperature is the only sensor
        raise _invalid_cdw11()


def _check_recovery(controller: ControllerState, cdw11: int) -> None:
    if cdw11 >> 16 & 1:  # DULBE needs Identify Namespace NSFEAT bit 2
        raise _invalid_cdw11()


def _check_queues(controller: ControllerState, cdw11: int) -> None:
    if cdw11 & 0xFFFF == 0xFFFF or cdw11 >> 16 == 0xFFFF:
        raise _invalid_cdw11()
    if controller.had_io_queues:
        raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR)


def _check_vector(controller: ControllerState, cdw11: int) -> None:
    if cdw11 & 0xFFFF >= max(controller.limits.vectors, 1):
        raise _invalid_cdw11()


def _all_queues(controller: ControllerState, which: int) -> int:
    most = controller.limits.io_queues - 1  # 0's based, both halves
    return most | most << 16


FEATURES: dict[FeatureId, Feature] = {
    FeatureId.ARBITRATION: Feature(),
    FeatureId.POWER_MANAGEMENT: Feature(check=_check_power),
    FeatureId.TEMPERATURE_THRESHOLD: Feature(
        default=lambda controller, under: 0 if under else WARNING_TEMPERATURE,
        which=lambda cdw11: cdw11 >> 20 & 3,  # THSEL: 0 over, 1 under
        check=_check_temperature,
    ),
    FeatureId.ERROR_RECOVERY: Feature(check=_check_recovery, is_per_namespace=True),
    FeatureId.VOLATILE_WRITE_CACHE: Feature(default=lambda controller, _: 1),
    FeatureId.NUMBER_OF_QUEUES: Feature(default=_all_queues, check=_check_queues),
    FeatureId.INTERRUPT_COALESCING: Feature(),
    FeatureId.INTERRUPT_VECTOR_CONFIGURATION: Feature(
        # the admin queue's vector is never coalesced
        default=lambda controller, vector: vector if vector else _COALESCING_DISABLE,
        which=lambda cdw11: cdw11 & 0xFFFF,
        check=_check_vector,
    ),
    FeatureId.WRITE_ATOMICITY: Feature(),
    FeatureId.ASYNC_EVENT_CONFIGURATION: Feature(),
    FeatureId.TIMESTAMP: Feature(data=8),
    FeatureId.HOST_BEHAVIOR_SUPPORT: Feature(data=512),
}
