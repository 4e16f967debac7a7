"""Get Features and Set Features, and the features that there are, each with what setting it does.

Base 1.4, 5.13 and 5.21. After a reset each feature has its saved value, or else its default. What a host saves (SV)
is in the drive's saved state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from nvmeemu.commands.feature import DataFeature, Feature, Scope, forgotten_values, invalid_cdw11, saved_values
from nvmeemu.controller.events import Event
from nvmeemu.controller.request import Pending, Request, Result, Saving
from nvmeemu.controller.state import ControllerState
from nvmeemu.ports import Changes
from nvmeemu.spec import (
    ALL_SENSORS,
    COMPOSITE_TEMPERATURE,
    MOST_QUEUES,
    OVER_TEMPERATURE,
    UNDER_TEMPERATURE,
    AsyncEventConfiguration,
    CriticalWarning,
    ErrorRecovery,
    EventType,
    FeatureId,
    GetFeatures,
    HostBehaviorSupport,
    InterruptCoalescing,
    InterruptVectorConfiguration,
    LbaStatusInformation,
    LogId,
    NumberOfQueues,
    Ocfs,
    Oncs,
    PowerManagement,
    Select,
    SetFeatures,
    SmartEvent,
    Status,
    TemperatureThreshold,
    Timestamp,
    VolatileWriteCache,
    WriteProtection,
    WriteProtectionConfig,
)
from nvmeemu.spec.errors import CommandFailed
from nvmeemu.subsystem.health import WARNING_TEMPERATURE
from nvmeemu.subsystem.media import FlushMedia, Media
from nvmeemu.subsystem.saved import write_protection
from nvmeemu.tables import Table

log = logging.getLogger(__name__)

_AGGREGATION_TIME = 100e-6  # seconds


def get_features(request: Request[GetFeatures]) -> Result:
    """Base 1.4, 5.13."""
    feature = _look_up(request.controller, request.command.fid)
    feature.admit(request)
    select = request.command.sel
    if select == Select.CAPABILITIES:
        return feature.capabilities
    if select > Select.CAPABILITIES:
        raise CommandFailed(Status.INVALID_FIELD, location=(41, 0))
    return feature.get(request, select)


def set_features(request: Request[SetFeatures]) -> Result:
    """Base 1.4, 5.21."""
    feature = _look_up(request.controller, request.command.fid)
    feature.admit(request)
    if request.command.sv and not feature.is_saveable:
        raise CommandFailed(Status.FEATURE_NOT_SAVEABLE, location=(43, 7))
    if not feature.is_changeable:
        raise CommandFailed(Status.FEATURE_NOT_CHANGEABLE, location=(40, 0))
    return feature.set(request)


def _look_up(controller: ControllerState, fid: int) -> Feature:
    feature = controller.part(VendorFeatures).get(fid) or FEATURES.get(fid)
    if feature is None or not feature.is_offered(controller):
        raise CommandFailed(Status.INVALID_FIELD, location=(40, 0))
    return feature


def value(controller: ControllerState, fid: FeatureId, which: int = 0) -> int:
    """The current value of a feature."""
    return FEATURES[fid].value(controller, which)


def offered(controller: ControllerState) -> dict[int, Feature]:
    """The features that this controller has, by their identifiers."""
    found = {**FEATURES, **controller.part(VendorFeatures)}
    return {fid: feature for fid, feature in found.items() if feature.is_offered(controller)}


def advertised(controller: ControllerState) -> Oncs:
    """What ONCS says of features."""
    found = Oncs(0)
    for feature in FEATURES.values():
        if feature.is_offered(controller):
            found |= feature.oncs
    return found


def restore(controller: ControllerState) -> None:
    """After a reset, what the host has saved holds. Base 1.4, 7.8."""
    found: dict[tuple[int, int], int] = {}
    features = offered(controller)
    for fid, which, value in saved_values(controller):
        feature = features.get(fid)
        try:
            if feature is not None and feature.is_saveable:  # else: of a plugin, or a disk, that is not there now
                found[fid, which] = feature.thaw(value)
        except ValueError as error:
            log.warning("feature %#04x has its default: what was saved cannot be: %s", fid, error)
    controller.saved_features = found
    for fid in {fid for fid, _ in found}:
        features[fid].apply(controller)


def forgotten(controller: ControllerState, nsid: int) -> Changes:
    """The changes that leave nothing of what was saved for a namespace."""
    return {
        key: value
        for feature in offered(controller).values()
        if feature.scope is Scope.NAMESPACE
        for key, value in forgotten_values(controller, feature.fid, nsid).items()
    }


def forget(controller: ControllerState, nsid: int) -> None:
    """The values of a namespace that is there no more."""
    for fid, feature in offered(controller).items():
        if feature.scope is Scope.NAMESPACE:
            controller.features.pop((fid, nsid), None)
            controller.saved_features.pop((fid, nsid), None)


class _Saveable(Feature):
    is_saveable = True


class _PowerManagement(_Saveable):
    def check(self, controller: ControllerState, cdw11: int) -> None:
        if PowerManagement.of(cdw11).ps:  # only power state 0 exists
            raise invalid_cdw11()


class _TemperatureThreshold(_Saveable):
    """The over and the under threshold of the composite temperature, which is the only one."""

    def default(self, controller: ControllerState, which: int) -> int:
        return 0 if which == UNDER_TEMPERATURE else WARNING_TEMPERATURE

    def which(self, controller: ControllerState, cdw11: int) -> int:
        self.check(controller, cdw11)
        return TemperatureThreshold.of(cdw11).thsel

    def check(self, controller: ControllerState, cdw11: int) -> None:
        asked = TemperatureThreshold.of(cdw11)
        if asked.tmpsel not in (COMPOSITE_TEMPERATURE, ALL_SENSORS) or asked.thsel > UNDER_TEMPERATURE:
            raise invalid_cdw11()

    def given(self, request: Request[SetFeatures]) -> int:
        return TemperatureThreshold.of(request.command.cdw11).tmpth

    def apply(self, controller: ControllerState) -> None:
        report_warnings(controller)


class _ErrorRecovery(_Saveable):
    scope = Scope.NAMESPACE

    def change(self, controller: ControllerState, targets: list[int], value: int) -> Result:
        if ErrorRecovery.of(value).dulbe:
            for nsid in targets:
                if controller.namespaces[nsid].media.block_map is None:  # NsFeat.DULBE
                    raise invalid_cdw11()
        return super().change(controller, targets, value)


class _WriteCache(_Saveable):
    """Off: writes from now on are durable, and the command completes when those before are; if that fails, the cache
    is as it was."""

    def is_offered(self, controller: ControllerState) -> bool:
        return controller.has_write_cache

    def default(self, controller: ControllerState, which: int) -> int:
        return _WCE

    def apply(self, controller: ControllerState) -> None:
        controller.configure_engine(write_cache=is_write_cache_on(controller))

    def change(self, controller: ControllerState, targets: list[int], value: int) -> Result:
        before = self.value(controller)

        def put(new: int) -> None:
            self.put(controller, 0, new)
            self.apply(controller)

        put(value)
        if value & _WCE:
            return 0
        return flushed(controller.namespaces.media, is_abortable=False, undo=lambda: put(before))


_WCE = int(VolatileWriteCache(wce=True))


def flushed(media: Sequence[Media], *, is_abortable: bool = True, undo: Callable[[], None] = lambda: None) -> Result:
    """Make what was written to all of them durable, one after the other. Once one was begun it cannot be aborted."""
    if not media:
        return 0
    return Pending(
        media[0], FlushMedia(), lambda _: flushed(media[1:], is_abortable=False, undo=undo), is_abortable, undo
    )


def is_write_cache_on(controller: ControllerState) -> bool:
    """Whether what is written may be lost until it is flushed."""
    return bool(value(controller, FeatureId.VOLATILE_WRITE_CACHE) & _WCE)


class _NumberOfQueues(Feature):
    def default(self, controller: ControllerState, which: int) -> int:
        return int(NumberOfQueues(nsq=controller.limits.io_queues, ncq=controller.limits.io_queues))

    def check(self, controller: ControllerState, cdw11: int) -> None:
        asked = NumberOfQueues.of(cdw11)
        if asked.nsq > MOST_QUEUES or asked.ncq > MOST_QUEUES:
            raise invalid_cdw11()
        if controller.had_io_queues:
            raise CommandFailed(Status.COMMAND_SEQUENCE_ERROR)

    def change(self, controller: ControllerState, targets: list[int], value: int) -> Result:
        """The answer is what is allocated, whatever was asked."""
        return self.value(controller)


class _Coalescing(_Saveable):
    def apply(self, controller: ControllerState) -> None:
        _coalesce(controller)


class _VectorConfiguration(_Saveable):
    """One value for each vector; the admin queue's is never coalesced."""

    def default(self, controller: ControllerState, which: int) -> int:
        return int(InterruptVectorConfiguration(iv=which, cd=not which))

    def which(self, controller: ControllerState, cdw11: int) -> int:
        self.check(controller, cdw11)
        return InterruptVectorConfiguration.of(cdw11).iv

    def check(self, controller: ControllerState, cdw11: int) -> None:
        if InterruptVectorConfiguration.of(cdw11).iv >= max(controller.limits.vectors, 1):
            raise invalid_cdw11()

    def apply(self, controller: ControllerState) -> None:
        _coalesce(controller)


def _coalesce(controller: ControllerState) -> None:
    """Base 1.4, 5.21.1.8 and 5.21.1.9."""
    setting = InterruptCoalescing.of(value(controller, FeatureId.INTERRUPT_COALESCING))
    vectors = []
    for vector in range(controller.limits.vectors):
        of_vector = value(controller, FeatureId.INTERRUPT_VECTOR_CONFIGURATION, vector)
        if not InterruptVectorConfiguration.of(of_vector).cd:
            vectors.append(vector)
    controller.coalescing.configure(setting.time * _AGGREGATION_TIME, setting.thr, vectors)


class _AsyncEventConfiguration(_Saveable):
    """Any value is taken, also notices that never come: FreeBSD enables them, and fails to attach otherwise."""

    def apply(self, controller: ControllerState) -> None:
        report_warnings(controller)


class _Timestamp(DataFeature):
    """Kept as its distance from our clock, in milliseconds."""

    size = Timestamp.SIZE
    oncs = Oncs.TIMESTAMP

    def encode(self, controller: ControllerState, value: int) -> bytes:
        was_set = (self.fid, 0) in controller.features
        now = _now(controller) + value & (1 << 48) - 1
        return bytes(Timestamp(milliseconds=now, origin=int(was_set)))

    def decode(self, controller: ControllerState, data: bytes) -> int:
        return Timestamp(data).milliseconds - _now(controller)


class _LbaStatusInformation(_Saveable):
    """The host says how often it wants to be told. It may look as often as it likes (LSIPI is 0)."""

    def given(self, request: Request[SetFeatures]) -> int:
        return int(LbaStatusInformation(lsiri=LbaStatusInformation.of(request.command.cdw11).lsiri))


def _now(controller: ControllerState) -> int:
    """Milliseconds since the last reset."""
    return int((controller.clock.now() - controller.reset_at) * 1000)


class _HostBehaviorSupport(DataFeature):
    changes_capabilities = True
    size = HostBehaviorSupport.SIZE

    def decode(self, controller: ControllerState, data: bytes) -> int:
        wanted = HostBehaviorSupport(data)
        if wanted.acre > 1 or wanted.etdas > 1 or wanted.lbafee > 1:
            raise CommandFailed(Status.INVALID_FIELD)
        cdfe = wanted.cdfe & _COPIES_OF_NAMESPACES
        return int(HostBehaviorSupport(acre=wanted.acre, etdas=wanted.etdas, lbafee=wanted.lbafee, cdfe=cdfe))


_COPIES_OF_NAMESPACES = Ocfs.FORMAT_2 | Ocfs.FORMAT_3


def _behavior(controller: ControllerState) -> HostBehaviorSupport:
    found = value(controller, FeatureId.HOST_BEHAVIOR_SUPPORT)
    return HostBehaviorSupport(found.to_bytes(HostBehaviorSupport.SIZE, "little"))


def knows_extended_formats(controller: ControllerState) -> bool:
    """The host has said that it knows extended LBA formats (LBAFEE): guards of 32 and 64 bits, storage tags."""
    return _behavior(controller).lbafee == 1


def copy_formats(controller: ControllerState) -> Ocfs:
    """The descriptor formats of Copy that the host may use: it has to say of some that it wants them (CDFE)."""
    return Ocfs.FORMAT_0 | Ocfs.FORMAT_1 | Ocfs(_behavior(controller).cdfe)


class _WriteProtection(Feature):
    """Namespace Write Protection Config. What is cached becomes durable before the namespace is protected; if that
    fails, the namespace is as it was. Two of its states cannot be left. The value lives with the namespace, so no reset
    changes it."""

    scope = Scope.NAMESPACE

    def value(self, controller: ControllerState, which: int = 0) -> int:
        return controller.namespaces[which].write_protection

    def saved(self, controller: ControllerState, which: int) -> int:
        return self.default(controller, which)

    def put(self, controller: ControllerState, which: int, value: int) -> None:
        controller.namespaces[which].write_protection = WriteProtection(WriteProtectionConfig.of(value).wps)
        controller.subsystem.changed(which)

    def check(self, controller: ControllerState, cdw11: int) -> None:
        if WriteProtectionConfig.of(cdw11).wps > WriteProtection.PERMANENT:
            raise invalid_cdw11()

    def change(self, controller: ControllerState, targets: list[int], value: int) -> Result:
        wanted = WriteProtectionConfig.of(value).wps
        changing = [controller.namespaces[which] for which in targets]
        changing = [one for one in changing if one.write_protection != wanted]
        if any(one.write_protection in _STAYS for one in changing):
            raise CommandFailed(Status.FEATURE_NOT_CHANGEABLE, location=(44, 0), why="this protection cannot be ended")
        before = {one.nsid: int(one.write_protection) for one in changing}

        def put(values: dict[int, int]) -> None:
            for nsid, state in values.items():
                if nsid in controller.namespaces.by_nsid:
                    self.put(controller, nsid, state)

        def remembered(values: dict[int, int]) -> Changes:
            return {write_protection(nsid).key: state or None for nsid, state in values.items()}

        def undo() -> None:
            put(before)
            controller.subsystem.state.save(remembered(before), lambda error: None)

        def then() -> Result:
            put(dict.fromkeys(before, wanted))
            if wanted == WriteProtection.NONE:
                return 0
            return flushed([one.media for one in changing], is_abortable=False, undo=undo)

        return Saving(remembered(dict.fromkeys(before, wanted)), then)


_STAYS = (WriteProtection.UNTIL_POWER_CYCLE, WriteProtection.PERMANENT)


def critical_warnings(controller: ControllerState) -> CriticalWarning:
    """Critical Warning of the SMART log: the state of the device by the thresholds of the host."""
    over, under = (
        value(controller, FeatureId.TEMPERATURE_THRESHOLD, which) for which in (OVER_TEMPERATURE, UNDER_TEMPERATURE)
    )
    return controller.subsystem.health.warnings(over, under)


def report_warnings(controller: ControllerState) -> None:
    """The device's health, a threshold or what the host wants to hear has changed: tell it of each new warning that
    it has asked for. Base 1.4, 5.21.1.11, SMART / Health Critical Warnings."""
    asked = CriticalWarning(wanted_events(controller).warnings & _TOLD)
    wanted = critical_warnings(controller) & asked
    for warning in wanted & ~controller.told:
        controller.events.report(Event(EventType.SMART, _SMART_EVENTS[warning], LogId.SMART))
    controller.told = wanted


def wanted_events(controller: ControllerState) -> AsyncEventConfiguration:
    """What the host wants to be told."""
    return AsyncEventConfiguration.of(value(controller, FeatureId.ASYNC_EVENT_CONFIGURATION))


_SMART_EVENTS = {
    CriticalWarning.SPARE: SmartEvent.SPARE,
    CriticalWarning.TEMPERATURE: SmartEvent.TEMPERATURE,
    CriticalWarning.RELIABILITY: SmartEvent.RELIABILITY,
}
_TOLD = CriticalWarning.SPARE | CriticalWarning.TEMPERATURE | CriticalWarning.RELIABILITY

FEATURES = Table(
    _Saveable(FeatureId.ARBITRATION),
    _PowerManagement(FeatureId.POWER_MANAGEMENT),
    _TemperatureThreshold(FeatureId.TEMPERATURE_THRESHOLD),
    _ErrorRecovery(FeatureId.ERROR_RECOVERY),
    _WriteCache(FeatureId.VOLATILE_WRITE_CACHE),
    _NumberOfQueues(FeatureId.NUMBER_OF_QUEUES),
    _Coalescing(FeatureId.INTERRUPT_COALESCING),
    _VectorConfiguration(FeatureId.INTERRUPT_VECTOR_CONFIGURATION),
    _Saveable(FeatureId.WRITE_ATOMICITY),
    _AsyncEventConfiguration(FeatureId.ASYNC_EVENT_CONFIGURATION),
    _Timestamp(FeatureId.TIMESTAMP),
    _LbaStatusInformation(FeatureId.LBA_STATUS_INFORMATION),
    _HostBehaviorSupport(FeatureId.HOST_BEHAVIOR_SUPPORT),
    _WriteProtection(FeatureId.NAMESPACE_WRITE_PROTECTION),
)


class VendorFeatures(Table[Feature]):
    """The features that one controller has more than all others (``ControllerState.part``)."""
