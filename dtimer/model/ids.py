"""Ids and namespaces: checks for those that the caller gives, and a generator of unique ids."""

from __future__ import annotations

import binascii
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import Self

from dtimer.errors import OptionError
from dtimer.model import summary
from dtimer.naming import public

#: The limit is in bytes of UTF-8. Each id is stored twice, so a long id costs its memory twice.
LONGEST_ID = 255

_NAMESPACE = re.compile(r"[A-Za-z0-9_.:~-]{1,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

#: Returns None unless an id ends like that of an occurrence of a schedule. A post with such an id
#: could replace the pending occurrence. The schedule would then end, because only the claim of an
#: occurrence creates the next one.
is_occurrence: Callable[[str], object] = re.compile(r"@\d{16}\Z").search

#: Returns None unless an id has the form of those that `IdGenerator.for_caller` makes.
is_for_caller: Callable[[str], object] = re.compile(r"[-0-9A-Z_a-z]{12}~[-0-9A-Z_a-z]{7}\Z").match

# Base 64 with its digits in ASCII order, so that ids sort like the numbers that they encode.
_TO_SORTED = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz",
)

# 2020-01-01. 42 bits of milliseconds from here last until the year 2159.
_EPOCH_MS = 1_577_836_800_000


class EventId(str):  # noqa: SLOT000 - a slot has no default, and nearly all are stored
    """
    The id of an event, as ``post`` returns it, and whether that post stored the event.

    In every other respect it is a ``str``: it compares, hashes, pickles and copies like one.

    Attributes:
        stored: False if ``if_exists`` kept an existing event with this id, so the posted event
            was not stored. None if it was posted into a pipeline of the caller; the reply of the
            pipeline then has the answer.
    """

    #: A class attribute, so that only an id whose event was not stored needs an attribute dict.
    stored: bool | None = True

    def __new__(cls, id: str, *, stored: bool | None = True) -> Self:
        """Make an id. *stored* is True if its event was stored."""
        self = super().__new__(cls, id)
        if stored is not True:
            self.stored = stored
        return self


public(EventId)


def event_ids(ids: Iterable[str], kept: frozenset[str]) -> list[EventId]:
    """Return the *ids* of posted events. The events of those in *kept* were not stored."""
    if kept:
        return [EventId(id, stored=id not in kept) for id in ids]
    # Skip the constructor, which would slow a bulk post down by a few percent.
    make = str.__new__
    return [make(EventId, id) for id in ids]


def schedule_of(id: str) -> str:
    """Return the schedule that the id of an occurrence names."""
    return id.rpartition("@")[0]


def check_id(value: object, name: str = "id") -> str:
    """
    Return *value* if it is a valid id: 1 to 255 bytes of UTF-8 without control characters.

    Raises:
        OptionError: *value* is not a valid id.
    """
    if isinstance(value, dict):
        # Do not quote the payload: it may be confidential.
        hint = f"; give its id, ev.{name}" if hasattr(value, name) else ""
        raise OptionError(f"{name} must be a str, not {type(value).__name__}{hint}")
    if not isinstance(value, str):
        raise OptionError(f"{name} must be a str, not {summary.typed(value)}")
    if not value:
        raise OptionError(f"{name} must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as e:
        raise OptionError(f"{name} {value!r:.80} cannot be encoded as UTF-8: {e.reason}") from None
    if size > LONGEST_ID:
        raise OptionError(f"{name} has {size} bytes; at most {LONGEST_ID} are allowed")
    if bad := _CONTROL.search(value):
        raise OptionError(f"{name} {value!r:.80} holds the control character {bad.group()!r}")
    return value


def check_node(value: object) -> str:
    """
    Return *value* if it is a valid node id.

    Raises:
        OptionError: *value* is not a valid node id. If it is a client or a URL, the text explains
            the order of the arguments, and does not quote the value, which may contain a password.
    """
    if isinstance(value, str) and "://" not in value:
        return check_id(value)
    given = "a URL" if isinstance(value, str) else type(value).__name__
    raise OptionError(
        f"the id of the node must be a name (a str), not {given}; pass the id first and then the"
        " client or its URL, as in DTimer('node-1', redis.Redis())"
    )


def check_namespace(value: object, name: str = "ns") -> str:
    """
    Return *value* if it is a valid namespace.

    Braces are not allowed: the namespace is part of the hash tag of every key, and a brace inside
    it would distribute the keys over several slots of a cluster.

    Raises:
        OptionError: *value* is not a valid namespace.
    """
    if isinstance(value, str) and _NAMESPACE.match(value):
        return value
    if not isinstance(value, str):
        given = type(value).__name__
    else:
        given = "a URL" if "://" in value else f"{value!r:.80}"
    raise OptionError(
        f"{name} must be 1 to 64 characters of A-Z a-z 0-9 _ . : ~ and -, not {given}"
    )


def _spell(number: int) -> str:
    """Return a number of up to 72 bits as twelve characters."""
    return (
        binascii.b2a_base64(number.to_bytes(9, "big"), newline=False)
        .translate(_TO_SORTED)
        .decode("ascii")
    )


class IdGenerator:
    """
    Generates short ids that sort by creation time.

    An id has twelve characters: seven for the millisecond, and five for a count that starts at
    random. Twelve is the most that fits into Redis's 16-byte size class, because a string header
    takes four bytes. Ids of one generator strictly ascend.

    Two generators may produce the same id, about once in 2**30 pairs of the same millisecond. The
    post script detects that, and the client generates another id.

    The local clock only orders ids. No lock is needed: a signal handler that interrupts this call
    and posts gets the next number of the count.
    """

    def __init__(self) -> None:
        self._ms = 0
        self._count = itertools.count(int.from_bytes(os.urandom(4), "big") & 0x3FFF_FFFF)

    def __call__(self) -> str:
        """Return a new id, greater than all earlier ids of this generator."""
        # max(), because the clock may be set back.
        ms = self._ms = max(self._ms, time.time_ns() // 1_000_000 - _EPOCH_MS)
        # A count beyond 30 bits carries into the milliseconds, once in a thousand million ids.
        return _spell((ms << 30) + next(self._count))

    def for_caller(self) -> str:
        """
        Return a new id whose form shows that dtimer made it, for a caller who posts it later.

        It has seven random characters behind those of other ids: nothing detects that another
        generator has made the same id. Twenty characters fit into Redis's 24-byte size class.
        """
        return f"{self()}~{incarnation()[:7]}"

    def after_fork(self) -> None:
        """Restart in a forked child with another count, or parent and child generate equal ids."""
        self.__init__()  # type: ignore[misc]


def incarnation() -> str:
    """Return a unique id for a node's membership. Unlike the node's id, it is never shared."""
    return _spell(int.from_bytes(os.urandom(9), "big"))
