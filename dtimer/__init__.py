"""A distributed timer backed by Redis: post an event now, and one process receives it when due."""

import importlib

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "Cleared",
    "ClockJump",
    "Codec",
    "CronOptions",
    "DTimer",
    "DTimerError",
    "DeadLetter",
    "Declared",
    "DueCount",
    "Duration",
    "Emission",
    "Event",
    "EventExists",
    "EventId",
    "HandlerError",
    "Health",
    "IfExists",
    "InFlight",
    "Job",
    "Json",
    "LeaseLost",
    "Minute",
    "Misfire",
    "Moment",
    "NamespaceCorrupt",
    "NodeInfo",
    "NotReplicated",
    "OptionError",
    "OutcomeUnknown",
    "Overlap",
    "PayloadError",
    "PayloadTooLarge",
    "PostItem",
    "PostOptions",
    "Reason",
    "Record",
    "RedisAddress",
    "RedisClient",
    "RedisPipeline",
    "Route",
    "Router",
    "RunAt",
    "RunAtOptions",
    "Schedule",
    "ScheduleBlock",
    "ScheduleOptions",
    "ScriptError",
    "Signed",
    "SkipRetry",
    "State",
    "StateRollback",
    "Stats",
    "StoreError",
    "TimerOptions",
    "UnknownKind",
    "UnreadablePayload",
    "UsageError",
    "Zlib",
]

# The modules that define these names. Those that import the fewest others come first.
_MODULES = (
    "dtimer.errors",
    "dtimer.model.outcomes",
    "dtimer.model.times",
    "dtimer.model.arguments",
    "dtimer.model.codecs",
    "dtimer.model.event",
    "dtimer.model.emission",
    "dtimer.model.ids",
    "dtimer.model.options",
    "dtimer.model.overviews",
    "dtimer.model.records",
    "dtimer.timer",
    "dtimer.router",
    "dtimer.runat",
)

# Type checkers treat this name as true even if it is not imported from `typing`. That import would
# take longer than everything else that `dtimer --version` does.
TYPE_CHECKING = False

if TYPE_CHECKING:
    # With `*`, so that each name is written only once, in __all__.
    from dtimer.errors import *
    from dtimer.model.arguments import *
    from dtimer.model.codecs import *
    from dtimer.model.emission import *
    from dtimer.model.event import *
    from dtimer.model.ids import *
    from dtimer.model.options import *
    from dtimer.model.outcomes import *
    from dtimer.model.overviews import *
    from dtimer.model.records import *
    from dtimer.model.times import *
    from dtimer.router import *
    from dtimer.runat import *
    from dtimer.timer import *
else:

    def __getattr__(name: str) -> object:
        """Import the module of a public name when the name is first used (PEP 562)."""
        if name in __all__:
            for module in _MODULES:
                found = getattr(importlib.import_module(module), name, None)
                if found is not None:
                    globals()[name] = found
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
