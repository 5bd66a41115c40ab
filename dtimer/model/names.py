"""Ids and namespaces: what may be a name, and the names that dtimer makes itself."""

from __future__ import annotations

import binascii
import itertools
import os
import re
import time
from collections.abc import Iterable
from typing import Any, Protocol, Self

from dtimer.errors import OptionError

#: Ids are stored twice per event, so long ones cost memory twice.
LONGEST_ID = 255

_NAMESPACE = re.compile(r"[A-Za-z0-9_.:~-]{1,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

# Base 64 with its digits in the order of ASCII, so that ids sort as the numbers they spell.
_TO_SORTED = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz",
)

# 2020-01-01. 42 bits of milliseconds from here reach the year 2159.
_EPOCH_MS = 1_577_836_800_000


class EventId(str):  # noqa: SLOT000 - a slot has no default, and nearly all are stored
    """
    The id of an event, as ``post`` returns it, and whether that post stored the event.

    A ``str`` in every other respect: it compares, hashes, pickles and copies like one.

    Attributes:
        stored: False if ``if_exists`` kept an existing event of this id, so that the event of
            this post will not be delivered. None if it was posted in a pipe of the caller's,
            whose reply says so.
    """

    #: Of the class, so that only an id that was not stored carries a value of its own.
    stored: bool | None = True

    def __new__(cls, id: str, *, stored: bool | None = True) -> Self:
        """Make an id that says whether its event was *stored*."""
        self = super().__new__(cls, id)
        if stored is not True:
            self.stored = stored
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, and copy, by any protocol."""
        return _event_id, (str(self), self.stored)


def _event_id(id: str, stored: bool | None) -> EventId:
    return EventId(id, stored=stored)


class Identified(Protocol):
    """What has an id."""

    @property
    def id(self) -> str:
        """The id."""


def event_ids(entries: Iterable[Identified], kept: frozenset[str]) -> list[EventId]:
    """Return the ids of the posted *entries*, of which those in *kept* were not stored."""
    if kept:
        return [EventId(e.id, stored=e.id not in kept) for e in entries]
    # The constructor would cost a bulk post a few percent.
    make = str.__new__
    return [make(EventId, e.id) for e in entries]


def check_id(value: object, name: str = "id") -> str:
    """
    Return *value* when it may be an id: 1 to 255 bytes of UTF-8, no control characters.

    Raises:
        OptionError: it may not, and why.
    """
    if isinstance(value, dict):
        # Not the payload itself: it may be what nobody else should read.
        hint = f"; give its id, ev.{name}" if hasattr(value, name) else ""
        raise OptionError(f"{name} must be a str, not {type(value).__name__}{hint}")
    if not isinstance(value, str):
        raise OptionError(f"{name} must be a str, not {value!r:.80} ({type(value).__name__})")
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
    Return *value* when it may be the id of a node.

    Raises:
        OptionError: it may not; the text says so if it is the client, or its URL, that came
            first. Neither is quoted, because there may be a password in it.
    """
    if isinstance(value, str) and "://" not in value:
        return check_id(value)
    given = "a URL" if isinstance(value, str) else type(value).__name__
    raise OptionError(
        f"the id of the node comes first, a str, and then the client or its URL, as in"
        f" DTimer('node-1', redis.Redis()); the id is not {given}"
    )


def check_namespace(value: object, name: str = "ns") -> str:
    """
    Return *value* when it may be a namespace.

    The pattern keeps braces out: the namespace stands inside the hash tag of every
    key, and a brace of its own would scatter the keys over a cluster.

    Raises:
        OptionError: it may not.
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
    """Spell 72 bits in twelve characters."""
    return (
        binascii.b2a_base64(number.to_bytes(9, "big"), newline=False)
        .translate(_TO_SORTED)
        .decode("ascii")
    )


class Mint:
    """
    Makes short ids that sort by the time of their making.

    Twelve characters: seven for the millisecond, five for a count that starts at random.
    Twelve is the most that Redis keeps in its 16-byte size class (a string header takes
    four), and each id is kept twice. Ids of one mint strictly ascend. Two mints may meet in
    one id, about once in 2**30 pairs of the same millisecond; the post script sees that, and
    a new id is made.

    The clock here orders ids and decides nothing else. There is no lock: a signal handler that
    interrupts the making of an id, and posts, takes the next number of the count.
    """

    def __init__(self) -> None:
        self._ms = 0
        self._count = itertools.count(int.from_bytes(os.urandom(4), "big") & 0x3FFF_FFFF)

    def __call__(self) -> str:
        """Return a new id, greater than any this mint made before."""
        # The clock may be set back.
        ms = self._ms = max(self._ms, time.time_ns() // 1_000_000 - _EPOCH_MS)
        # What the count has over 30 bits is a millisecond for every thousand million ids.
        return _spell((ms << 30) + next(self._count))

    def after_fork(self) -> None:
        """Start anew in a forked child, which must not count on where its parent was."""
        self.__init__()  # type: ignore[misc]


def incarnation() -> str:
    """Return the name of one life of a node: an id may be shared, this may not."""
    return _spell(int.from_bytes(os.urandom(9), "big"))
