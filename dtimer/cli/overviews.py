"""The commands that show many events at once: ``ahead``, ``history`` and ``in-flight``."""

from __future__ import annotations

import dataclasses
import time

import click

from dtimer.cli.options import shared
from dtimer.cli.output import brief, escaped, lateness, moment
from dtimer.cli.server import Settings, opened
from dtimer.cli.tables import Column, show
from dtimer.model.overviews import DueCount, InFlight, Minute
from dtimer.model.times import format_duration

_HOUR_MS = 3_600_000

_AHEAD = (Column("from"), Column("events"))


def _ahead_cells(part: DueCount, narrow: bool) -> list[str]:
    return [brief(part.begins) if narrow else moment(part.begins), str(part.count)]


@click.command(
    epilog="""
    Of a schedule only the next occurrence is counted. Events that are overdue are not
    counted, and events in flight are counted when their lease ends.

    \b
    Examples:
      $ dtimer ahead
      $ dtimer ahead --day --json
    """
)
@click.option("--day", is_flag=True, help="The next day, by the hour.")
@shared()
@click.pass_obj
def ahead(settings: Settings, day: bool) -> None:
    """Count the events that fall due in each minute of the next hour."""
    with opened(settings) as timer:
        counts = timer.ahead(24 * _HOUR_MS, periods=24) if day else timer.ahead()
    show(settings, _AHEAD, counts, _ahead_cells, dataclasses.asdict, empty="nothing")


_HISTORY = (
    Column("minute"),
    *(Column(name) for name in ("posted", "started", "confirmed", "retried", "died")),
    *(Column(name) for name in ("scheduled", "in flight", "overdue", "dead")),
    Column("half late"),
    Column("99 % late"),
)


def _history_cells(minute: Minute, narrow: bool) -> list[str]:
    begins = brief(minute.begins) if narrow else moment(minute.begins)
    counts = [minute.posted, minute.started, minute.confirmed, minute.retried, minute.died]
    there = [minute.scheduled, minute.in_flight, minute.overdue, minute.dead]
    late = (minute.late_p50_ms, minute.late_p99_ms)
    return [begins, *map(str, counts + there), *("" if ms is None else lateness(ms) for ms in late)]


@click.command(
    epilog="""
    Joined nodes record it, once a minute. A minute is missing if nothing happened and
    nothing waited, or if no node had joined.

    \b
    Examples:
      $ dtimer history
      $ dtimer history --json
    """
)
@shared()
@click.pass_obj
def history(settings: Settings) -> None:
    """Show the counts of each minute of the last day."""
    with opened(settings) as timer:
        minutes = timer.history()
    empty = f"nothing is recorded of the last day in the namespace {settings.ns}"
    show(settings, _HISTORY, minutes, _history_cells, dataclasses.asdict, empty=empty)


_IN_FLIGHT = (
    Column("id", "cyan", fold=True),
    Column("node", fold=True),
    Column("claimed"),
    Column("start"),
    Column("", takes_rest=True),
)


def _in_flight_cells(held: InFlight, narrow: bool) -> list[str]:
    ago = f"{format_duration(max(0.0, time.time() * 1000 - held.claimed))} ago"
    claimed = ago if narrow else f"{moment(held.claimed)} ({ago})"
    about = "cancelled" if held.cancelled else ""
    node = escaped(held.node or held.incarnation)
    return [escaped(held.id), node, claimed, str(held.attempt), about]


@click.command(
    "in-flight",
    epilog="""
    An event is listed from its claim until its handler has returned. If there are more
    than 200, a random sample of 200 is listed.

    \b
    Examples:
      $ dtimer in-flight
      $ dtimer in-flight --json
    """,
)
@shared()
@click.pass_obj
def in_flight(settings: Settings) -> None:
    """List the events that nodes have claimed, the oldest claim first."""
    with opened(settings) as timer:
        held = timer.in_flight()
    empty = f"no event is in flight in the namespace {settings.ns}"
    show(settings, _IN_FLIGHT, held, _in_flight_cells, dataclasses.asdict, empty=empty)
