"""The commands about events: ``post``, ``upcoming``, ``stats``."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import click

from dtimer.cli.durations import Moment
from dtimer.cli.options import limit_option, shared
from dtimer.cli.output import brief, escaped, lateness, moment, payload
from dtimer.cli.param_types import DURATION, EVENT, EXPIRY, ID, MOMENT
from dtimer.cli.server import Settings, opened
from dtimer.cli.tables import Column, show
from dtimer.model.arguments import IfExists
from dtimer.model.ids import IdGenerator
from dtimer.model.options import MOST_REPLICAS, validate
from dtimer.model.records import Record
from dtimer.model.times import format_duration
from dtimer.monitor.fields import record_fields, stats_fields
from dtimer.monitor.judgement import overdue_ms
from dtimer.timer.posting import POLICIES, prepare


@click.command(
    epilog="""
    Write DELAY and --expires as 200 or 200ms, 10s, 10m, 1h30m, 2d or PT10M; a plain number
    means milliseconds. --at and --expires also accept a moment: 2030-01-31T09:00+01:00;
    without a zone it is local time. --at also accepts milliseconds since the epoch.

    \b
    Examples:
      $ dtimer post '{"msg": "hello"}' 200ms
      $ dtimer post '{"msg": "tea"}' 4m --id tea --if-exists earliest
      $ dtimer post '{"do": "index"}' 5s --id index-42 --max-wait 1m
      $ dtimer post '{"year": 2030}' --at 2030-01-01T00:00Z --expires 2030-01-02
    """
)
@click.argument("event", type=EVENT)
@click.argument("delay", type=DURATION, required=False)
@click.option("--id", type=ID, help="The id of the event. It is generated otherwise, and printed.")
@click.option("--at", type=MOMENT, help="When it is due, instead of DELAY.")
@click.option("--max-retries", type=int, metavar="N", help="How often it may be retried.")
@click.option("--expires", type=EXPIRY, help="After this time it is not delivered any more.")
@click.option(
    "--if-exists",
    type=click.Choice(POLICIES),
    default="replace",
    show_default=True,
    help="What to do if an event with this id exists.",
)
@click.option(
    "--max-wait",
    type=DURATION,
    metavar="DURATION",
    help="With --id: how long repeated posts may postpone the event.",
)
@click.option(
    "--wait-replicas",
    type=click.IntRange(0, MOST_REPLICAS),
    metavar="N",
    help="Wait until N replicas have it; fail if they do not in time.",
)
@shared()
@click.pass_obj
def post(  # noqa: PLR0917 - click passes them by name
    settings: Settings,
    event: dict[str, Any],
    delay: timedelta | None,
    id: str | None,
    at: Moment | None,
    max_retries: int | None,
    expires: timedelta | Moment | None,
    if_exists: IfExists,
    max_wait: timedelta | None,
    wait_replicas: int | None,
) -> None:
    """
    Post EVENT, a JSON object, for one node to receive after DELAY.

    Without a DELAY, and without --at, it is due now.
    """
    if delay is not None and at is not None:
        raise click.UsageError("give either DELAY or --at, not both")
    given: dict[str, Any] = {
        "at": None if at is None else at.at,
        "id": id,
        "max_retries": max_retries,
        "expires": expires.at if isinstance(expires, Moment) else expires,
        "if_exists": if_exists,
        "max_wait": max_wait,
    }
    delay = timedelta(0) if delay is None else delay
    # Check everything before looking for a server.
    prepare(validate(settings.timer_options()), IdGenerator(), event, delay or 0, **given)
    print_assumed_zones(settings, due=at, expires=expires)
    with opened(settings) as timer:
        posted = timer.post(event, delay or 0, **given, wait_replicas=wait_replicas)
    settings.output.result(str(posted), id=str(posted), stored=posted.stored)
    if not posted.stored:
        settings.output.notice(
            f"not stored: an event with the id {escaped(posted)} exists already and was kept"
        )


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer upcoming
      $ dtimer upcoming --limit 3 --json
      $ dtimer upcoming --schedule report
    """
)
@limit_option("events")
@click.option("--schedule", type=ID, help="List only the occurrences of this schedule.")
@shared()
@click.pass_obj
def upcoming(settings: Settings, limit: int, schedule: str | None) -> None:
    """
    List the waiting events, the earliest due time first.

    The output is a table on a terminal, and columns separated by tabs elsewhere. Events
    that are in flight or dead are not listed.
    """
    empty = f"nothing is waiting in the namespace {settings.ns}"
    with opened(settings) as timer:
        records = timer.upcoming(schedule=schedule)
        show(settings, COLUMNS, records, cells, record_fields, empty=empty, limit=limit)


COLUMNS = (
    Column("due"),
    Column("", "dim"),
    Column("id", "cyan", fold=True),
    Column("starts"),
    Column("event", takes_rest=True),
)


def from_now(moment_ms: float, now: float) -> str:
    """Describe how far away a moment is: in 5s, 5s ago."""
    left = moment_ms - now
    return f"in {format_duration(left)}" if left >= 0 else f"{format_duration(-left)} ago"


def cells(record: Record, narrow: bool, now: float | None = None) -> list[str]:
    """Return the cells of a record, for people; *now* is this machine's time if None."""
    now = time.time() * 1000 if now is None else now
    due = brief(record.due) if narrow else moment(record.due)
    about = (due, from_now(record.due, now), escaped(record.id), str(record.attempt))
    return [*about, payload(record.event, record.sealed)]


def print_assumed_zones(settings: Settings, **moments: object) -> None:
    """Print, with its offset, each moment that the user gave without a zone."""
    for name, value in moments.items():
        if isinstance(value, Moment) and value.zone_assumed:
            text = value.at.isoformat(" ")
            settings.output.notice(f"{name} {text}, taken as local time", **{name: text})


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer stats
      $ dtimer stats --ns orders --json
    """
)
@shared()
@click.pass_obj
def stats(settings: Settings) -> None:
    """Show the namespace in numbers."""
    with opened(settings) as timer:
        numbers = timer.stats()
    if settings.as_json:
        settings.output.result(**{"ns": settings.ns} | stats_fields(numbers))
        return
    late = f", the oldest for {format_duration(overdue_ms(numbers))}" if numbers.overdue else ""
    rows = {
        "namespace": settings.ns + (" (paused)" if numbers.paused else ""),
        "scheduled": numbers.scheduled,
        "in flight": numbers.in_flight,
        "overdue": f"{numbers.overdue}{late}",
        "dead": numbers.dead,
        "nodes": numbers.nodes,
    }
    p50, p99 = numbers.late(0.5), numbers.late(0.99)
    if p50 is not None and p99 is not None:
        rows["lateness"] = f"p50 {lateness(p50)}, p99 {lateness(p99)} at most"
    for name, value in rows.items():
        settings.output.result((f"{name:<12}", "dim"), str(value))
    ever = [f"{name} {count}" for name, count in numbers.totals.items() if count]
    settings.output.result((f"{'ever':<12}", "dim"), ", ".join(ever) or "nothing")
