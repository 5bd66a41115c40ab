"""A distributed timer backed by Redis: post an event now, one process receives it in time."""

import importlib
import typing

# Imported on first use (PEP 562), so that `dtimer --version` imports only this module.
if typing.TYPE_CHECKING:
    from dtimer.errors import (
        ClockJump,
        DTimerError,
        EventExists,
        HandlerError,
        LeaseLost,
        NamespaceCorrupt,
        NotReplicated,
        OptionError,
        OutcomeUnknown,
        PayloadError,
        PayloadTooLarge,
        ScriptError,
        StateRollback,
        StoreError,
        UsageError,
    )
    from dtimer.model.event import (
        Cancelled,
        DeadLetter,
        Event,
        Health,
        NodeInfo,
        Record,
        State,
        Stats,
    )
    from dtimer.model.names import EventId
    from dtimer.model.recurrence import Schedule
    from dtimer.runat import RunAt
    from dtimer.timer import DTimer

__all__ = [
    "Cancelled",
    "ClockJump",
    "DTimer",
    "DTimerError",
    "DeadLetter",
    "Event",
    "EventExists",
    "EventId",
    "HandlerError",
    "Health",
    "LeaseLost",
    "NamespaceCorrupt",
    "NodeInfo",
    "NotReplicated",
    "OptionError",
    "OutcomeUnknown",
    "PayloadError",
    "PayloadTooLarge",
    "Record",
    "RunAt",
    "Schedule",
    "ScriptError",
    "State",
    "StateRollback",
    "Stats",
    "StoreError",
    "UsageError",
]

__version__ = "0.1.0"

_ROOMS = {
    "dtimer.model.event": (
        "Cancelled",
        "DeadLetter",
        "Event",
        "Health",
        "NodeInfo",
        "Record",
        "State",
        "Stats",
    ),
    "dtimer.model.names": ("EventId",),
    "dtimer.model.recurrence": ("Schedule",),
    "dtimer.runat": ("RunAt",),
    "dtimer.timer": ("DTimer",),
}
_ROOM = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> typing.Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_ROOM.get(name, "dtimer.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
