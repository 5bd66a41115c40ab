"""
Classify exceptions of the client library: may the call have taken effect, and is a retry useful?

The class name and the prefix of the server's error decide. An ``isinstance`` check would not do:
redis-py and valkey-py have unrelated classes with the same names, and the hierarchies mislead.
``TimeoutError`` is not a ``ConnectionError``, the error for a wrong password is one, and the
errors of the cluster client are not even a ``RedisError``.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import signal
import threading
import traceback
from types import CodeType

from dtimer.errors import DTimerError, NamespaceCorrupt, ScriptError, StoreError
from dtimer.model.claims import BrokenReply
from dtimer.store import acl
from dtimer.store.connection import tls


class Failure(enum.Enum):
    """The kind of a failure, which decides whether and how the call is retried."""

    RETRY = "the call had no effect: retry it"
    UNKNOWN = "the call may have taken effect: retry the same operation"
    RECONNECT = "this is the wrong server: reconnect, then retry"
    REFUSED = "the call had no effect, and a retry would be refused, too"
    NO_SCRIPT = "the server does not have the script: send its source"


# The cluster client follows the topology by itself, and raises these when it has failed to.
_TOPOLOGY = {
    "ReadOnlyError",
    "MovedError",
    "AskError",
    "TryAgainError",
    "MasterDownError",
    "ClusterDownError",
    "ClusterError",
    "RedisClusterException",
    "ValkeyClusterException",
    "SlotNotCoveredError",
}
_CONFIGURATION = {
    "AuthenticationError",
    "AuthenticationWrongNumberOfArgsError",
    "AuthorizationError",
    "NoPermissionError",
    "InvalidPasswordError",
}
_CONFIGURATION_PREFIXES = ("NOPERM", "NOAUTH", "WRONGPASS", "Protocol error: unauthenticated")
_TOPOLOGY_PREFIXES = ("READONLY", "MOVED", "ASK ", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN")
_TEMPORARY_PREFIXES = ("LOADING", "BUSY ", "UNBLOCKED", "max number of clients")


# Finds, in the error of a script, why the server refused one of its commands (Redis 6.2 and 7).
_WITHIN = re.compile(
    r"(?:rror running script|user_script|script: ).*?-?\b"
    r"(READONLY|MISCONF|NOREPLICAS|OOM|NOPERM|MASTERDOWN|LOADING|CLUSTERDOWN)\b"
)


def message(error: BaseException) -> str:
    """Return the text of *error*; of an error inside a script, the part about the command."""
    text = str(error)
    within = _WITHIN.search(text)
    return text[within.start(1) :] if within else text


def names(error: BaseException) -> set[str]:
    """Return the names of the class of *error* and of its base classes."""
    return {cls.__name__ for cls in type(error).__mro__}


def classify(error: BaseException, sent: bool) -> Failure:
    """Classify *error*; *sent* says whether the command may have reached the server."""
    classes, text = names(error), message(error)
    if "NoScriptError" in classes or text.startswith("NOSCRIPT"):
        return Failure.NO_SCRIPT
    if needs_operator(error):
        return Failure.REFUSED
    if classes & _TOPOLOGY or text.startswith(_TOPOLOGY_PREFIXES):
        return Failure.RECONNECT
    if "BusyLoadingError" in classes or text.startswith(_TEMPORARY_PREFIXES):
        return Failure.RETRY
    if "ResponseError" in classes or isinstance(error, DTimerError):
        return Failure.REFUSED
    if not sent:
        return Failure.RETRY
    return Failure.UNKNOWN


def of_signal_handler(error: BaseException) -> BaseException | None:
    """
    Return the exception of a signal handler that ended the call with *error*; None if none did.

    Such an exception is the user's wish to end the call, and not a failure of it. The client
    library may have replaced it, because a handler often raises ``TimeoutError``.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python runs the handlers on the main thread only.
        return None
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    found: BaseException | None = error
    while handlers and found is not None:
        if any(frame.f_code in handlers for frame, _ in traceback.walk_tb(found.__traceback__)):
            return found
        found = found.__cause__ or found.__context__
    return None


def _code(handler: object) -> CodeType | None:
    """Return the code of a signal handler; None if it is not written in Python."""
    if not callable(handler):
        return None
    if isinstance(handler, functools.partial):
        handler = handler.func
    if not inspect.isroutine(handler):
        handler = getattr(handler, "__call__", None)  # noqa: B004 - the method, not a test
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None


def needs_operator(error: BaseException | None) -> bool:
    """Return True if *error* lasts until an operator fixes its cause: retries may be slow."""
    if isinstance(error, StoreError) and error.__cause__ is not None:
        error = error.__cause__
    if error is None:
        return False
    text = message(error)
    if text.startswith(_CONFIGURATION_PREFIXES) or names(error) & _CONFIGURATION:
        return True
    if tls.mistrusted(error):
        return True
    # A refusal by an ACL inside a script has neither the class nor the prefix.
    return "ResponseError" in names(error) and acl.refusal(text) is not None


def broken_reply(error: BaseException, arrived: int) -> BrokenReply:
    """Return the error for a reply that ended with *error* after *arrived* bytes."""
    made = BrokenReply(f"a reply broke off after {arrived} bytes: {message(error)}")
    made.arrived, made.timed_out = arrived, "TimeoutError" in names(error)
    return made


def overtaken(error: BaseException) -> bool:
    """Return True if the server has already done a later operation of the same session."""
    return "DTSTALE" in message(error)


def translate(error: BaseException, doing: str, place: str) -> StoreError:
    """
    Return the `StoreError` for an error that the client library raised.

    Args:
        error: The error of the client library.
        doing: A verb phrase for the failed operation.
        place: The address of the server.
    """
    text = message(error)
    if isinstance(error, StoreError):
        return error
    if text.startswith(("DTCORRUPT ", "DTSCHEMA ")):
        return NamespaceCorrupt(text.partition(" ")[2])
    if "WRONGTYPE" in text:
        return NamespaceCorrupt(f"a key of the namespace has a wrong type ({doing}: {text})")
    if tls.mistrusted(error):
        return StoreError(f"no trusted connection to Redis at {place} ({doing}): {text}")
    if needs_operator(error):
        return StoreError(f"Redis at {place} refuses this client ({doing}): {text}")
    if "ResponseError" not in names(error) or text.startswith(("OOM", "MISCONF", "NOREPLICAS")):
        return StoreError(f"Redis at {place} refused to {doing}: {text}")
    if "command not allowed when used memory" in text:
        return StoreError(f"Redis at {place} is out of memory and refused to {doing}: {text}")
    if "DTSTALE" in text or "user_script" in text or "Error running script" in text:
        return ScriptError(f"a script failed ({doing}): {text}; please report this")
    return StoreError(f"Redis at {place} refused to {doing}: {text}")
