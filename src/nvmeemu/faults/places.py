"""Where faults happen: the places that everything passes on its way."""

from __future__ import annotations

from enum import StrEnum


class At(StrEnum):
    """``NOW`` is no place: when the fault is added."""

    REGISTER = "register"
    DOORBELL = "doorbell"
    FETCH = "fetch"
    EXECUTE = "execute"
    DMA = "dma"
    BACKEND = "backend"
    COMPLETION = "completion"
    INTERRUPT = "interrupt"
    EVENT = "event"
    NOW = "now"


PLACES = tuple(At)
OF_COMMANDS = (At.FETCH, At.EXECUTE, At.DMA, At.BACKEND, At.COMPLETION)
OF_QUEUES = (At.DOORBELL, *OF_COMMANDS)
