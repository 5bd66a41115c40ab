"""The commands about recurring events: ``every``, ``cron``, ``schedules`` and the like."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from dtimer.cli.events import from_now, print_assumed_zones
from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.options import shared
from dtimer.cli.output import brief, escaped, moment, payload
from dtimer.cli.param_types import DURATION, EVENT, ID, MOMENT
from dtimer.cli.prompts import confirm_or_abort, yes_option
from dtimer.cli.server import Settings, opened, opened_store
from dtimer.cli.tables import Column, show
from dtimer.model.options import validate
from dtimer.model.records import Schedule
from dtimer.model.schedules import MISFIRES, OVERLAPS
from dtimer.model.times import format_duration
from dtimer.timer.declaring import prepare_schedule

Command = TypeVar("Command", bound=Callable[..., Any])


def _schedule_options(command: Command) -> Command:
    """Give a command the options that all schedules have."""
    options = (
        click.option("--id", type=ID, required=True, help="The id of the schedule."),
        click.option("--start", type=MOMENT, help="The first nominal time."),
        click.option("--end", type=MOMENT, help="The last possible nominal time."),
        click.option("--count", type=int, metavar="N", help="The maximum number of occurrences."),
        click.option("--jitter", type=DURATION, default="0", help="A random delay of up to this."),
        click.option(
            "--misfire",
            type=click.Choice(list(MISFIRES)),
            default="coalesce",
            show_default=True,
            help="What to do about missed occurrences.",
        ),
        click.option(
            "--overlap",
            type=click.Choice(list(OVERLAPS)),
            default="queue",
            show_default=True,
            help="What to do while the previous one is running.",
        ),
        click.option(
            "--max-retries", type=int, metavar="N", help="How often each one may be retried."
        ),
        click.option("--grace", type=DURATION, help="Skip an occurrence later than this."),
        click.option("--expires", type=DURATION, help="When an occurrence expires."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _declare(
    settings: Settings, rule: dict[str, Any], event: dict[str, Any], given: dict[str, Any]
) -> None:
    """
    Declare a schedule, and print the outcome.

    Args:
        settings: The settings of the command.
        rule: Says when the event recurs, as arguments of `prepare_schedule`.
        event: The payload.
        given: The options of `_schedule_options`, as the user gave them.
    """
    id = given["id"]
    print_assumed_zones(settings, start=given["start"], end=given["end"])
    for name in ("start", "end"):
        given[name] = given[name] and given[name].at
    # Check everything before looking for a server.
    spec = prepare_schedule(validate(settings.timer_options()), ev=event, **rule, **given)
    with opened_store(settings) as store:
        outcome = store.schedules.declare(spec)
        schedule = store.schedules.get(id)
    due = None if schedule is None else schedule.due
    following = "no occurrence left" if due is None else f"next {moment(due)}"
    settings.output.result(
        f"{outcome}: {escaped(id)}, {following}", id=id, outcome=outcome, due=due
    )


@click.command(
    epilog="""
    Repeating a declaration changes nothing. A different declaration with the same id
    changes the schedule.

    \b
    Examples:
      $ dtimer every 10m '{"do": "sweep"}' --id sweep
      $ dtimer every 1h '{"do": "count"}' --id count --jitter 30s --misfire skip
    """
)
@click.argument("interval", type=DURATION)
@click.argument("event", type=EVENT)
@_schedule_options
@shared()
@click.pass_obj
def every(settings: Settings, /, interval: timedelta, event: dict[str, Any], **given: Any) -> None:
    """Declare a schedule: EVENT recurs every INTERVAL."""
    _declare(settings, {"every": interval}, event, given)


@click.command(
    epilog="""
    EXPRESSION has five fields (minute, hour, day, month, weekday) or six (seconds
    first), with names, lists, ranges, steps, L and #; or it is @daily or similar.

    \b
    Examples:
      $ dtimer cron '0 9 * * mon-fri' '{"n": 1}' --id report --tz Europe/Berlin
      $ dtimer cron @daily '{"n": 2}' --id backup --grace 2h
    """
)
@click.argument("expression")
@click.argument("event", type=EVENT)
@click.option("--tz", default="UTC", show_default=True, help="The time zone of the fields.")
@_schedule_options
@shared()
@click.pass_obj
def cron(
    settings: Settings, /, expression: str, event: dict[str, Any], tz: str, **given: Any
) -> None:
    """Declare a schedule: EVENT recurs when EXPRESSION matches."""
    _declare(settings, {"cron": expression, "tz": tz}, event, given)


_COLUMNS = (
    Column("id", "cyan", fold=True),
    Column("rule", fold=True),
    Column("next"),
    Column("", "dim"),
    Column("last"),
    Column("event", takes_rest=True),
)


def rule_of(schedule: Schedule) -> str:
    """Format the rule of a schedule."""
    if schedule.cron is None:
        return f"every {format_duration(schedule.interval or 0)}"
    return schedule.cron if schedule.tz == "UTC" else f"{schedule.cron} {schedule.tz}"


def _cells(schedule: Schedule, narrow: bool) -> list[str]:
    write = brief if narrow else moment
    due, away = "paused" if schedule.paused else "over", ""
    if schedule.due is not None:
        due, away = write(schedule.due), from_now(schedule.due, time.time() * 1000)
    last = "never" if schedule.last is None else write(schedule.last)
    event = payload(schedule.event, schedule.sealed)
    return [escaped(schedule.id), escaped(rule_of(schedule)), due, away, last, event]


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer schedules
      $ dtimer schedules --json
    """
)
@shared()
@click.pass_obj
def schedules(settings: Settings) -> None:
    """List the schedules, and when each is due next."""
    empty = f"the namespace {settings.ns} has no schedules"
    with opened(settings) as timer:
        show(settings, _COLUMNS, timer.schedules(), _cells, dataclasses.asdict, empty=empty)


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer every 10m '{"do": "sweep"}' --id sweep
      $ dtimer unschedule sweep --yes
    """
)
@click.argument("id", type=ID)
@yes_option
@shared()
@click.pass_obj
def unschedule(settings: Settings, id: str, yes: bool) -> int:
    """End the schedule ID; a running occurrence is not stopped."""
    confirm_or_abort(f"End the schedule {escaped(id)} of the namespace {settings.ns}", yes=yes)
    with opened(settings) as timer:
        if not timer.unschedule(id):
            return settings.output.missing("schedule", id)
    settings.output.result(f"ended {escaped(id)}", id=id)
    return ExitCode.DONE


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer every 10m '{"do": "sweep"}' --id sweep
      $ dtimer run-now sweep
    """
)
@click.argument("id", type=ID)
@shared()
@click.pass_obj
def run_now(settings: Settings, id: str) -> int:
    """
    Deliver one more occurrence of the schedule ID now.

    The id of the occurrence is printed.
    """
    with opened(settings) as timer:
        occurrence = timer.run_now(id)
    if occurrence is None:
        return settings.output.missing("schedule", id)
    settings.output.result(escaped(occurrence), id=occurrence, schedule=id)
    return ExitCode.DONE
