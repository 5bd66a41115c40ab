"""
What an exception of the client library means: was it done, and is it worth another try.

Told by class name and by the prefix of the server's reply, because redis-py and valkey-py
have unrelated classes of the same names, and because neither family is to be trusted:
``TimeoutError`` is no ``ConnectionError``, a bad password is one, and the cluster's own
errors are no ``RedisError`` at all.
"""

from __future__ import annotations

import enum
import re

from dtimer.errors import DTimerError, NamespaceCorrupt, ScriptError, StoreError
from dtimer.model.claims import BrokenReply
from dtimer.store import access, tls


class Fate(enum.Enum):
    """What may be done about a failed call."""

    RETRY = "nothing was done, try again"
    UNKNOWN = "perhaps it was done, try the same again"
    RECONNECT = "this server is the wrong one: connect anew, then try again"
    REFUSED = "it was not done, and would not be a moment later"
    NO_SCRIPT = "the server does not have the script"


# The cluster client finds its way by itself and reports these when it has not.
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
_PASSING_PREFIXES = ("LOADING", "BUSY ", "UNBLOCKED", "max number of clients")


# How a server reports what a command within a script was refused for: Redis 6.2, and 7.
_WITHIN = re.compile(
    r"(?:rror running script|user_script|script: ).*?-?\b"
    r"(READONLY|MISCONF|NOREPLICAS|OOM|NOPERM|MASTERDOWN|LOADING|CLUSTERDOWN)\b"
)


def message(error: BaseException) -> str:
    """Return what the server said, the refused command's words where a script ran into them."""
    text = str(error)
    within = _WITHIN.search(text)
    return text[within.start(1) :] if within else text


def names(error: BaseException) -> set[str]:
    """Return the names of the classes of *error*."""
    return {cls.__name__ for cls in type(error).__mro__}


def fate(error: BaseException, sent: bool) -> Fate:
    """Judge *error*, which came after the command was *sent*, or before."""
    classes, text = names(error), message(error)
    if "NoScriptError" in classes or text.startswith("NOSCRIPT"):
        return Fate.NO_SCRIPT
    if slow(error):
        return Fate.REFUSED
    if classes & _TOPOLOGY or text.startswith(_TOPOLOGY_PREFIXES):
        return Fate.RECONNECT
    if "BusyLoadingError" in classes or text.startswith(_PASSING_PREFIXES):
        return Fate.RETRY
    if "ResponseError" in classes or isinstance(error, DTimerError):
        return Fate.REFUSED
    if not sent:
        return Fate.RETRY
    return Fate.UNKNOWN


def slow(error: BaseException | None) -> bool:
    """Tell whether *error* needs a person: trying again soon would only hammer the server."""
    if isinstance(error, StoreError) and error.__cause__ is not None:
        error = error.__cause__
    if error is None:
        return False
    text = message(error)
    if text.startswith(_CONFIGURATION_PREFIXES) or names(error) & _CONFIGURATION:
        return True
    if tls.mistrusted(error):
        return True
    # What an ACL refuses within a script has neither the class nor the prefix.
    return "ResponseError" in names(error) and access.refusal(text) is not None


def broken_reply(error: BaseException, arrived: int) -> BrokenReply:
    """Make the error for a reply that broke off with *error* when so many bytes had *arrived*."""
    made = BrokenReply(f"a reply broke off after {arrived} bytes: {message(error)}")
    made.arrived, made.slow = arrived, "TimeoutError" in names(error)
    return made


def overtaken(error: BaseException) -> bool:
    """Tell whether the server remembers a later operation of the same lane."""
    return "DTSTALE" in message(error)


def translate(error: BaseException, doing: str, place: str) -> StoreError:
    """
    Make the error of our tree that says what the server refused.

    Args:
        error: What the client library raised.
        doing: What was to be done.
        place: Where the server is.
    """
    text = message(error)
    if isinstance(error, StoreError):
        return error
    if text.startswith("DTCORRUPT "):
        return NamespaceCorrupt(text.removeprefix("DTCORRUPT "))
    if "WRONGTYPE" in text:
        return NamespaceCorrupt(f"a key of the namespace holds a foreign type ({doing}: {text})")
    if tls.mistrusted(error):
        return StoreError(f"there is no trusted connection to Redis at {place} ({doing}): {text}")
    if slow(error):
        return StoreError(f"Redis at {place} refuses this client ({doing}): {text}")
    if "ResponseError" not in names(error) or text.startswith(("OOM", "MISCONF", "NOREPLICAS")):
        return StoreError(f"Redis at {place} refused to {doing}: {text}")
    if "command not allowed when used memory" in text:
        return StoreError(f"Redis at {place} is out of memory and refused to {doing}: {text}")
    if "DTSTALE" in text or "user_script" in text or "Error running script" in text:
        return ScriptError(f"a script failed ({doing}): {text}; please report this")
    return StoreError(f"Redis at {place} refused to {doing}: {text}")
