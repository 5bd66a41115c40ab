"""
Schedules: the specification of a recurring event, and its nominal times.

cronsim reads cron expressions, as a calendar without time zones. `dtimer.model.cron` converts its
local times to moments, also where daylight saving time begins and ends.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from dtimer.errors import NamespaceCorrupt, OptionError
from dtimer.model import cron, summary
from dtimer.model.arguments import Misfire, Overlap
from dtimer.model.options import check_choice, check_count
from dtimer.model.times import Duration, Moment, duration_us, moment_us
from dtimer.model.zones import zone

MISFIRES: dict[Misfire, str] = {"coalesce": "c", "skip": "s", "all": "a"}
OVERLAPS: dict[Overlap, str] = {"queue": "q", "allow": "a", "skip": "s"}

#: How many future nominal times of a cron schedule are stored in Redis.
STORED_TIMES = 10

#: The most missed occurrences that ``misfire="all"`` delivers. The script has the same limit
#: (``lua/parts/schedule/due.lua``).
MOST_BEHIND = 1_000

#: The most nominal times that one call computes, which takes about a quarter of a second.
MOST_COMPUTED = 20_000

#: The shortest interval of a schedule. A shorter one should be a loop in the program.
SHORTEST_US = 10_000

#: The fields that a stored specification has only if they are set.
LATER_FIELDS = ("grace", "expires")

# The limit for each text of a stored specification. dtimer writes only shorter ones.
_LONGEST_TEXT = 1_000

#: Shorter than other ids, because the id of an occurrence is this id and the nominal time.
LONGEST_SCHEDULE_ID = 230

_RANGE_OF_ONE = re.compile(r"(?<![^\s,])(\w+)-\1/\d+(?![^\s,])", re.IGNORECASE)

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """
    The specification of a schedule: an interval in µs, or a cron expression and its time zone.

    ``start`` and ``stop`` are µs since the epoch, or None. ``max_retries``, ``payload``, ``grace``
    and ``expires`` apply to each occurrence. The last two are µs after its due time, or None.
    ``payload`` is in stored form. ``identity`` is the text that the
    fingerprint has of it: a codec may write the same payload differently each time. It is not
    stored, so a schedule that was read has none.
    """

    id: str
    every: int | None
    cron: str | None
    tz: str
    start: int | None
    stop: int | None
    count: int | None
    jitter: int
    misfire: Misfire
    overlap: Overlap
    max_retries: int
    payload: str = field(repr=False)
    grace: int | None = None
    expires: int | None = None
    identity: str | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> str:
        """
        Return the specification as JSON, without the id and the payload.

        The fingerprint follows from it. A new field must be left out while it has its default.
        Otherwise all fingerprints change: nodes of two versions would each declare their schedules
        as changed, and the older version could not read the definitions of the newer.
        """
        stored = {n: getattr(self, n) for n in STORED_FIELDS}
        for name in LATER_FIELDS:
            if stored[name] is None:
                del stored[name]
        return json.dumps(stored, separators=(",", ":"), sort_keys=True)

    @property
    def fingerprint(self) -> str:
        """A hash of the specification. Declaring one with the same hash again changes nothing."""
        text = self.to_json() + (self.payload if self.identity is None else self.identity)
        raw = text.encode(errors="surrogateescape")
        return hashlib.blake2b(raw, digest_size=8).hexdigest()

    def nominals(self, after_us: int) -> Iterator[int]:
        """Yield the nominal times of a cron schedule after a moment, in µs, up to its end."""
        return _walk(self.cron or "", self.tz, max(after_us, (self.start or 0) - 1), self.stop)


@dataclass(frozen=True, slots=True)
class Declaration:
    """
    Schedules that are declared together, with one script.

    ``version`` is that of the owner: whole numbers joined by dots. Without an owner both are empty,
    and there is one schedule.
    """

    specs: tuple[ScheduleSpec, ...]
    owner: str = ""
    version: str = ""


#: The fields of a stored specification.
STORED_FIELDS = [
    each.name for each in fields(ScheduleSpec) if each.name not in {"id", "payload", "identity"}
]


def spec_from_json(id: str, text: bytes, payload: bytes) -> ScheduleSpec:
    """
    Return the specification of a schedule from its stored form.

    Args:
        id: The id of the schedule.
        text: The stored specification, without the payload.
        payload: The stored payload of the occurrences.

    Raises:
        NamespaceCorrupt: the stored form is not valid, so dtimer has not written it.
    """
    try:
        stored: dict[str, Any] = json.loads(text)
        given = payload.decode(errors="surrogateescape")
        # With `identity`, so that a stored field of this name is refused.
        made = ScheduleSpec(id=id, payload=given, identity=None, **stored)
        _check_read(made)
    # CPython 3.11 reports a field named "id" as a KeyError while another exception is handled.
    except (TypeError, ValueError, KeyError, RecursionError) as e:
        raise NamespaceCorrupt(
            f"the schedule {id!r} cannot be read ({e!s:.200}): declare it again, or unschedule it"
        ) from None
    return made


def _check_read(d: ScheduleSpec) -> None:
    names = ("every", "start", "stop", "count", "jitter", "grace", "expires")
    numbers = {n: getattr(d, n) for n in names}
    for name, value in (numbers | {"max_retries": d.max_retries}).items():
        optional = value is None and name not in ("jitter", "max_retries")
        if not optional and (type(value) is not int or not 0 <= value < 2**62):
            raise ValueError(f"{name} is not a valid number")
    texts: list[Any] = [d.tz, d.misfire, d.overlap] + ([] if d.cron is None else [d.cron])
    if not all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in texts):
        raise ValueError("tz, cron, misfire or overlap is not a valid text")
    if d.misfire not in MISFIRES or d.overlap not in OVERLAPS:
        raise ValueError("misfire or overlap is unknown")
    if (d.cron is None) is (d.every is None) or d.every == 0:
        raise ValueError("it must have either an interval or a cron expression")


def _walk(expression: str, tz: str, after_us: int, stop: int | None) -> Iterator[int]:
    # Write 6-6/2 as 6: cronsim would read that range as a single 6, and 6/2 as "from 6 on".
    plain = _RANGE_OF_ONE.sub(r"\1", _NICKNAMES.get(expression, expression))
    # If the minute and the hour are both fixed, a change of the clock neither drops nor repeats an
    # occurrence. Otherwise occurrences follow the clock.
    fixed = not any(field.startswith("*") for field in plain.split()[-5:-3])
    walk = cron.once_each if fixed else cron.every_match
    for seconds in walk(lambda local: CronSim(plain, local), ZoneInfo(tz), after_us // 1_000_000):
        us = seconds * 1_000_000
        if stop is not None and us > stop:
            return
        yield us


def check_cron(expression: object, tz: str) -> str:
    """
    Return *expression* with normalised white space, and in lower case if it is a name like @daily.

    Raises:
        OptionError: *expression* is not a valid cron expression.
    """
    if not isinstance(expression, str):
        raise OptionError(f"a cron expression must be a str, not {summary.value(expression)}")
    plain = " ".join(expression.split())
    if plain.startswith("@") and plain.lower() not in _NICKNAMES:
        names = ", ".join(_NICKNAMES)
        raise OptionError(f"unknown cron name {expression!r}; valid names are {names}")
    plain = plain.lower() if plain.startswith("@") else plain
    try:
        next(_walk(plain, tz, 1_700_000_000_000_000, None))
    except (CronSimError, StopIteration) as e:
        raise OptionError(
            f"the cron expression {expression!r} cannot be read ({e}); it has"
            " five fields (minute hour day month weekday), or six with seconds first"
        ) from None
    return plain


def make_spec(
    id: str,
    *,
    every: Duration | None = None,
    cron: str | None = None,
    tz: str | ZoneInfo = "UTC",
    start: Moment | None,
    end: Moment | None,
    count: int | None,
    jitter: Duration,
    misfire: Misfire,
    overlap: Overlap,
    max_retries: int,
    payload: str,
    grace: Duration | None = None,
    expires: Duration | None = None,
    identity: str | None = None,
    stepped: bool = False,
) -> ScheduleSpec:
    """
    Check the arguments of ``every`` or ``cron``, and return them as a specification.

    For *stepped* see `moment_us`.

    Raises:
        OptionError: an argument is invalid.
    """
    interval = None
    if every is not None:
        interval = duration_us(every, "interval")
        if interval < SHORTEST_US:
            raise OptionError(
                f"interval must be at least {SHORTEST_US // 1000} ms, not {every!r}; numbers are"
                " milliseconds, so every second is 1_000, and every minute 60_000"
            )
    name = zone(tz).key
    if len(id.encode()) > LONGEST_SCHEDULE_ID:
        raise OptionError(f"the id of a schedule may have at most {LONGEST_SCHEDULE_ID} bytes")
    spread = duration_us(jitter, "jitter")
    if spread < 0:
        raise OptionError(f"jitter must not be negative, not {jitter!r}")
    if interval is not None and spread > interval:
        raise OptionError(f"jitter must not be longer than the interval, not {jitter!r}")
    begins = None if start is None else moment_us(start, "start", stepped=stepped)
    ends = None if end is None else moment_us(end, "end", stepped=stepped)
    if begins is not None and ends is not None and ends < begins:
        raise OptionError(f"end {end!r} is before start {start!r}")
    return ScheduleSpec(
        id=id,
        every=interval,
        cron=None if cron is None else check_cron(cron, name),
        tz=name,
        start=begins,
        stop=ends,
        count=None if count is None else check_count(count, "count", 1, 2**53),
        jitter=spread,
        misfire=check_choice(misfire, "misfire", MISFIRES),
        overlap=check_choice(overlap, "overlap", OVERLAPS),
        max_retries=max_retries,
        payload=payload,
        grace=_check_limit(grace, "grace"),
        expires=_check_limit(expires, "expires"),
        identity=identity,
    )


def _check_limit(value: Duration | None, name: str) -> int | None:
    if value is None:
        return None
    limit = duration_us(value, name)
    if limit < SHORTEST_US:
        raise OptionError(f"{name} must be at least {SHORTEST_US // 1000} ms, not {value!r}")
    return limit


def next_times(spec: ScheduleSpec, after_us: int, most: int = STORED_TIMES) -> list[int]:
    """Return the next nominal times of a cron schedule after a moment, at most *most*."""
    return list(itertools.islice(spec.nominals(after_us), most))


def times_to_add(spec: ScheduleSpec, known_us: int, now_us: int) -> tuple[int, list[int], bool]:
    """
    Return the nominal times of a cron schedule that must be stored next, at most `STORED_TIMES`.

    They follow the last stored time, *known_us*. Of the times that were missed before *now_us*,
    only the last is returned, in place of all of them. With ``misfire="all"`` or a grace, the last
    `MOST_BEHIND` of them are returned, without those that are later than the grace.

    Returns:
        How many missed times were left out, the times, and True if no more will follow.
    """
    most = MOST_BEHIND if spec.misfire == "all" or spec.grace is not None else 1
    # Nominal times before this one are too late. The last of them is returned nevertheless, because
    # the next call continues after it.
    earliest = 0 if spec.grace is None else now_us - spec.grace - spec.jitter
    past, future, left_out, final = deque[int](), list[int](), 0, True
    for walked, nominal in enumerate(spec.nominals(known_us)):
        is_past = nominal + spec.jitter <= now_us
        if len(past) + len(future) >= STORED_TIMES and not is_past:
            final = False
            break
        if walked == MOST_COMPUTED:
            # Leave the rest to the next call: the caller must renew leases in the meantime.
            return left_out + len(past) - 1, [past[-1]], False
        if not is_past:
            future.append(nominal)
            continue
        while past and (len(past) == most or past[0] < earliest):
            past.popleft()
            left_out += 1
        past.append(nominal)
    times = [*past, *future]
    return left_out, times[:STORED_TIMES], final and len(times) <= STORED_TIMES
