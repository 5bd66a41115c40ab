"""Check the arguments of ``post`` before any I/O, and turn them into an entry for the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, Required, TypedDict, get_args

from dtimer.errors import OptionError
from dtimer.model import hints, summary
from dtimer.model.arguments import IfExists
from dtimer.model.ids import IdGenerator, check_id, is_for_caller, is_occurrence
from dtimer.model.options import MOST_RETRIES, Options, check_choice, check_count
from dtimer.model.times import Duration, Moment, duration_us, moment_us
from dtimer.naming import public
from dtimer.store.format import Entry, write_body

POLICIES: tuple[IfExists, ...] = get_args(IfExists)

#: The most events in one script call, and about the most bytes of payload.
_MOST_ENTRIES = 500
_MOST_BYTES = 1_000_000

#: A payload and its delay, for `DTimer.post_many`.
PostPair = tuple[Mapping[str, Any], Duration]


class PostItem(TypedDict, total=False):
    """An event for `DTimer.post_many`: arguments of `DTimer.post` by their names."""

    ev: Required[Mapping[str, Any]]
    delay: Duration
    at: Moment | None
    id: str | None
    max_retries: int | None
    expires: Duration | datetime | None
    if_exists: IfExists
    max_wait: Duration | None


public(PostItem)

_ARGUMENTS = frozenset(PostItem.__annotations__)


class Posting(NamedTuple):
    """
    An entry, and the policy if an event with its id is pending.

    The policy is *if_exists* of the caller. For a generated id it is ``post_new``: the script of
    this name stores such events.
    """

    entry: Entry
    policy: str


def due_argument(delay: Duration, at: Moment | None, *, stepped: bool, name: str = "at") -> str:
    """
    Return a due time in the form of the scripts: ``+µs`` from now, or µs since the epoch.

    Args:
        delay: The time from now. Zero or less means now.
        at: The due time instead of a delay. A past time means now.
        stepped: True if a test moves the clock; see `moment_us`.
        name: The name of *at* in messages.
    """
    if at is None:
        return f"+{max(0, duration_us(delay, 'delay'))}"
    if delay != 0 or isinstance(delay, bool):
        given = f"delay={summary.value(delay)}, at={summary.value(at)}"
        raise OptionError(f"give either delay or at, not both ({given})")
    return str(max(0, moment_us(at, name, stepped=stepped)))


def _expires(value: Duration | datetime) -> str:
    if isinstance(value, datetime):
        return str(max(0, moment_us(value, "expires")))
    us = duration_us(value, "expires")
    if us <= 0:
        raise OptionError(f"expires must be a positive time from now, not {value!r:.80}")
    return f"+{us}"


def _waits_at_most(
    max_wait: Duration, delay: Duration, at: Moment | None, id: str | None, if_exists: IfExists
) -> str:
    """Check ``max_wait``; return what it adds to the due time."""
    limit = duration_us(max_wait, "max_wait")
    if id is None:
        raise OptionError("max_wait needs an id: it limits how long posts of this id delay it")
    if if_exists != "replace":
        raise OptionError(f"max_wait goes with if_exists='replace', not {if_exists!r}")
    if at is not None:
        raise OptionError("max_wait goes with a delay, not with at")
    if limit < max(0, duration_us(delay, "delay")):
        raise OptionError(
            f"max_wait must not be shorter than the delay (max_wait={summary.value(max_wait)},"
            f" delay={summary.value(delay)})"
        )
    return f",{limit}"


def prepare(
    options: Options,
    new_id: IdGenerator,
    ev: Mapping[str, Any],
    delay: Duration = 0,
    *,
    at: Moment | None = None,
    id: str | None = None,
    max_retries: int | None = None,
    expires: Duration | datetime | None = None,
    if_exists: IfExists = "replace",
    max_wait: Duration | None = None,
    trace: str = "",
) -> Posting:
    """
    Check the arguments of ``post``, and return the entry.

    *trace* is the trace context of the post, as `stored_trace` returns it.

    Raises:
        OptionError: an argument is not valid.
        PayloadError: the payload is not valid.
    """
    check_choice(if_exists, "if_exists", POLICIES)
    due = due_argument(delay, at, stepped=options.now is not None)
    if max_retries is None:
        max_retries = options.max_retries
    else:
        check_count(max_retries, "max_retries", 0, MOST_RETRIES)
    if max_wait is not None:
        due += _waits_at_most(max_wait, delay, at, id, if_exists)
    payload = options.codec.encode(ev, options.max_payload)
    until = "" if expires is None else _expires(expires)
    if id is None:
        body = write_body(until, max_retries, payload, trace=trace)
        return Posting(Entry(new_id(), due, body), "post_new")
    if is_occurrence(check_id(id)):
        raise OptionError(
            f"the id {id!r} ends like that of an occurrence of a schedule; choose another id"
        )
    body = write_body(
        until,
        max_retries,
        payload,
        # Of an id that dtimer has made, the caller says that it is new.
        chosen_id=not is_for_caller(id),
        limited_wait=max_wait is not None,
        trace=trace,
    )
    return Posting(Entry(id, due, body), if_exists)


def _names(item: Mapping[Any, Any]) -> list[str]:
    return sorted(n if isinstance(n, str) else type(n).__name__ for n in item)


def prepare_item(options: Options, new_id: IdGenerator, item: object, trace: str = "") -> Posting:
    """Check one item of ``post_many``: a pair, or a mapping of the arguments of ``post``."""
    if isinstance(item, Mapping):
        if "ev" not in item:
            given = ", ".join(_names(item)) or "nothing"
            raise OptionError(
                "an item of post_many lacks its payload: give a pair (ev, delay) or a mapping such"
                f" as {{'ev': …, 'delay': …}}, and this one has {given}"
            )
        if unknown := [name for name in _names(item) if name not in _ARGUMENTS]:
            hint = hints.suggestion(unknown[0], sorted(_ARGUMENTS))
            raise OptionError(f"an item of post_many has no argument {unknown[0]!r}{hint}")
        return prepare(options, new_id, **item, trace=trace)
    if isinstance(item, tuple | list) and len(item) == 2:
        return prepare(options, new_id, item[0], item[1], trace=trace)
    raise OptionError(
        "an item of post_many must be a pair (ev, delay) or a mapping of the arguments of"
        f" post, not {type(item).__name__}"
    )


class Chunk:
    """The entries of one script call, all of one policy, and their places among the items."""

    __slots__ = ("entries", "places", "policy", "size")

    def __init__(self, policy: str) -> None:
        self.policy: str = policy
        self.entries: list[Entry] = []
        self.places: list[int] = []
        #: About the number of bytes of the payloads.
        self.size: int = 0

    def has_room_for(self, entry: Entry) -> bool:
        """Return whether *entry* still fits into this call."""
        if not self.entries:
            return True
        return len(self.entries) < _MOST_ENTRIES and self.size + len(entry.body) <= _MOST_BYTES

    def add(self, place: int, entry: Entry) -> None:
        """Add the entry of the item at *place*."""
        self.places.append(place)
        self.entries.append(entry)
        self.size += len(entry.body)


def chunks(postings: Iterable[Posting]) -> Iterator[Chunk]:
    """
    Group postings into script calls of limited size, each of one policy and without repeated ids.

    One chunk for each policy is open at a time, so that alternating items with and without ids
    do not need one call each. If a chunk is full, or an id repeats, all open chunks are yielded.
    So the events of one id are posted in the order of their items, and every item of an endless
    source is posted at some time.

    Consumes *postings* only as far as the next chunks need.
    """
    opened: dict[str, Chunk] = {}
    ids: set[str] = set()
    for place, (entry, policy) in enumerate(postings):
        chunk = opened.get(policy)
        if entry.id in ids or (chunk is not None and not chunk.has_room_for(entry)):
            yield from opened.values()
            opened, ids, chunk = {}, set(), None
        if chunk is None:
            chunk = opened[policy] = Chunk(policy)
        chunk.add(place, entry)
        ids.add(entry.id)
    yield from opened.values()
