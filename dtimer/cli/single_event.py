"""The commands about one existing event: ``peek``, ``reschedule`` and ``update``."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import click

from dtimer.cli.durations import Moment
from dtimer.cli.events import from_now, print_assumed_zones
from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.options import shared
from dtimer.cli.output import escaped, moment, payload
from dtimer.cli.param_types import EVENT, ID, WHEN
from dtimer.cli.server import Settings, opened
from dtimer.monitor.fields import record_fields


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer post '{"msg": "tea"}' 4m --id tea
      $ dtimer peek tea
      $ dtimer peek tea --json
    """
)
@click.argument("id", type=ID)
@shared()
@click.pass_obj
def peek(settings: Settings, id: str) -> int:
    """Show the event ID and its state: scheduled, in flight or dead."""
    with opened(settings) as timer:
        record = timer.peek(id)
    if record is None:
        return settings.output.missing("event", id)
    if settings.as_json:
        settings.output.result(**record_fields(record))
        return ExitCode.DONE
    when = "died" if record.state.value == "dead" else "due"
    rows = {
        "id": escaped(record.id),
        "state": record.state.value.replace("_", " "),
        when: f"{moment(record.due)} ({from_now(record.due, time.time() * 1000)})",
        "starts": str(record.attempt),
        "retries": "" if record.max_retries is None else f"at most {record.max_retries}",
        "expires": "" if record.expires is None else moment(record.expires),
        "event": payload(record.event, record.sealed),
    }
    for name, value in rows.items():
        if value:
            settings.output.result((f"{name:<8}", "dim"), value)
    return ExitCode.DONE


@click.command(
    epilog="""
    WHEN is a delay from now or a moment: 200ms, 10m, 2h30m, PT10M, 2030-01-31T09:00+01:00,
    or '2030-01-31 09:00' in local time. A plain number means milliseconds: from now if it
    is less than 100000000000, otherwise since the epoch.

    \b
    Examples:
      $ dtimer post '{"msg": "tea"}' 4m --id tea
      $ dtimer reschedule tea 10m
      $ dtimer reschedule tea 2030-01-31T09:00+01:00
    """
)
@click.argument("id", type=ID)
@click.argument("when", type=WHEN)
@shared()
@click.pass_obj
def reschedule(settings: Settings, id: str, when: timedelta | Moment) -> int:
    """Change when the event ID is due. It must not be running or dead."""
    print_assumed_zones(settings, due=when)
    with opened(settings) as timer:
        if isinstance(when, Moment):
            moved = timer.reschedule(id, at=when.at)
        else:
            moved = timer.reschedule(id, when)
    text = "moved" if moved else "not moved: no event with this id is waiting"
    settings.output.result(text, id=id, moved=moved)
    return ExitCode.DONE if moved else ExitCode.NEGATIVE


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer post '{"msg": "tea"}' 4m --id tea
      $ dtimer update tea '{"msg": "green tea"}'
    """
)
@click.argument("id", type=ID)
@click.argument("event", type=EVENT)
@shared()
@click.pass_obj
def update(settings: Settings, id: str, event: dict[str, Any]) -> int:
    """
    Replace the payload of the event ID by EVENT, a JSON object.

    The event keeps its due time and its attempts. It must not be running or dead.
    """
    with opened(settings) as timer:
        updated = timer.update(id, event)
    text = "updated" if updated else "not updated: no event with this id is waiting"
    settings.output.result(text, id=id, updated=updated)
    return ExitCode.DONE if updated else ExitCode.NEGATIVE
