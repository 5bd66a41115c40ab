"""A distributed timer backed by Redis: post an event now, one process receives it in time."""

from dtimer.errors import (
    DTimerError,
    EventExists,
    HandlerError,
    LeaseLost,
    NamespaceCorrupt,
    OptionError,
    OutcomeUnknown,
    PayloadError,
    PayloadTooLarge,
    ScriptError,
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
from dtimer.model.recurrence import Schedule
from dtimer.runat import RunAt
from dtimer.timer import DTimer

__all__ = [
    "Cancelled",
    "DTimer",
    "DTimerError",
    "DeadLetter",
    "Event",
    "EventExists",
    "HandlerError",
    "Health",
    "LeaseLost",
    "NamespaceCorrupt",
    "NodeInfo",
    "OptionError",
    "OutcomeUnknown",
    "PayloadError",
    "PayloadTooLarge",
    "Record",
    "RunAt",
    "Schedule",
    "ScriptError",
    "State",
    "Stats",
    "StoreError",
    "UsageError",
]

__version__ = "0.1.0"
