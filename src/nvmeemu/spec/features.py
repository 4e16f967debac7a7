"""Features: their identifiers, what Get Features can ask for, and the values of those with fields. Base 1.4, 5.21.1.

The value of most features is CDW11 of Set Features and DW0 of Get Features: a record of four bytes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from nvmeemu.spec.events import CriticalWarning, Notice
from nvmeemu.spec.layout import Record, bit, bits, count, flags, uint
from nvmeemu.spec.names import Names


class FeatureId(IntEnum):
    """Feature Identifiers. Base 1.4, Figure 271 and 272."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIGURATION = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    TIMESTAMP = 0x0E
    LBA_STATUS_INFORMATION = 0x15
    HOST_BEHAVIOR_SUPPORT = 0x16
    NAMESPACE_WRITE_PROTECTION = 0x84


FEATURE_NAMES = Names(FeatureId)
FIRST_VENDOR_FEATURE = 0xC0


class Select(IntEnum):
    """Which value Get Features asks for. Base 1.4, 5.13."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class FeatureCapability(IntFlag):
    """The answer to ``Select.CAPABILITIES``. Base 1.4, 5.13."""

    SAVEABLE = 1 << 0
    PER_NAMESPACE = 1 << 1
    CHANGEABLE = 1 << 2


class PowerManagement(Record, size=4):
    """Power Management. Base 1.4, 5.21.1.2."""

    ps = bits(0, 4, 0)
    wh = bits(0, 7, 5)


class TemperatureThreshold(Record, size=4):
    """Temperature Threshold. Base 1.4, 5.21.1.4. ``tmpth`` in kelvin."""

    tmpth = bits(0, 15, 0)
    tmpsel = bits(0, 19, 16)
    thsel = bits(0, 21, 20)


COMPOSITE_TEMPERATURE, ALL_SENSORS = 0x0, 0xF  # TMPSEL
OVER_TEMPERATURE, UNDER_TEMPERATURE = 0, 1  # THSEL


class ErrorRecovery(Record, size=4):
    """Error Recovery. Base 1.4, 5.21.1.5. ``tler`` (Time Limited Error Recovery) in 100 ms."""

    tler = bits(0, 15, 0)
    dulbe = bit(0, 16)


class VolatileWriteCache(Record, size=4):
    """Volatile Write Cache. Base 1.4, 5.21.1.6."""

    wce = bit(0, 0)


class NumberOfQueues(Record, size=4):
    """Number of Queues: how many the host asks for, and how many it is given. Base 1.4, 5.21.1.7."""

    nsq = count(0, 15, 0)
    ncq = count(0, 31, 16)


MOST_QUEUES = 0xFFFF  # that a host may ask for: FFFFh in the 0's based field is invalid


class InterruptCoalescing(Record, size=4):
    """Interrupt Coalescing. Base 1.4, 5.21.1.8. ``time`` in 100 us."""

    thr = count(0, 7, 0)
    time = bits(0, 15, 8)


class InterruptVectorConfiguration(Record, size=4):
    """Interrupt Vector Configuration. Base 1.4, 5.21.1.9."""

    iv = bits(0, 15, 0)
    cd = bit(0, 16)


class AsyncEventConfiguration(Record, size=4):
    """Asynchronous Event Configuration: what the host wants events for. Base 1.4, 5.21.1.11."""

    warnings = flags(0, 1, CriticalWarning)
    notices = flags(0, 4, Notice)  # the bits above the warnings


class Timestamp(Record, size=8):
    """Timestamp. Base 1.4, 5.21.1.14. ``milliseconds`` since 1970, or since the reset if the host has not set it."""

    milliseconds = bits(0, 47, 0, size=8)
    synch = bit(0, 48, size=8)  # it may have stood still meanwhile
    origin = bits(0, 51, 49, size=8)  # 1: the host has set it


class LbaStatusInformation(Record, size=4):
    """LBA Status Information Attributes, in 100 ms: the least time from one event to the next, and that which the host
    should wait before it looks again. Base 1.4, 5.21.1.21."""

    lsiri = bits(0, 15, 0)
    lsipi = bits(0, 31, 16)


class HostBehaviorSupport(Record, size=512):
    """Host Behavior Support. Base 1.4, 5.21.1.22; from ``etdas`` on: Base 2.0."""

    acre = uint(0, 1)
    etdas = uint(1, 1)
    lbafee = uint(2, 1)
    cdfe = uint(4, 2)  # a bit for each descriptor format of Copy that names namespaces; Base 2.1


class WriteProtection(IntEnum):
    """State of Namespace Write Protection Config. Base 1.4, 5.21.1.29 and 8.19."""

    NONE = 0
    PROTECTED = 1
    UNTIL_POWER_CYCLE = 2
    PERMANENT = 3


class WriteProtectionConfig(Record, size=4):
    """Base 1.4, 5.21.1.29."""

    wps = bits(0, 2, 0)  # ``WriteProtection``
