"""The commands about dead letters: ``dead``, ``revive``, ``drop``, ``purge``."""

from __future__ import annotations

import time

import click

from dtimer.cli.events import from_now
from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.options import limit_option, shared
from dtimer.cli.output import brief, escaped, moment, payload
from dtimer.cli.param_types import ID
from dtimer.cli.prompts import confirm_or_abort, yes_option
from dtimer.cli.server import Settings, opened
from dtimer.cli.tables import Column, show
from dtimer.model.outcomes import Reason
from dtimer.model.records import DeadLetter
from dtimer.monitor.fields import letter_fields

_COLUMNS = (
    Column("died"),
    Column("", "dim"),
    Column("id", "cyan", fold=True),
    Column("starts"),
    Column("reason", "yellow"),
    Column("error and event", takes_rest=True),
)


def letter_cells(letter: DeadLetter, narrow: bool) -> list[str]:
    """Return the cells of a dead letter, for people."""
    died = brief(letter.died) if narrow else moment(letter.died)
    about = f"{escaped(letter.error)}  {payload(letter.event, letter.sealed)}".strip()
    # One ms later, so that a letter of this moment is "1ms ago" and not "in 0ms".
    ago = from_now(letter.died, time.time() * 1000 + 1)
    return [died, ago, escaped(letter.id), str(letter.attempt), letter.reason, about]


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer dead
      $ dtimer dead --newest --limit 3 --json
    """
)
@click.option("--newest", is_flag=True, help="List the newest first.")
@limit_option("dead letters")
@shared()
@click.pass_obj
def dead(settings: Settings, newest: bool, limit: int) -> None:
    """
    List the dead letters, the oldest first.

    These are the events that are no longer delivered, each with the reason.
    """
    empty = f"the namespace {settings.ns} has no dead letters"
    with opened(settings) as timer:
        letters = timer.dead(newest=newest)
        show(settings, _COLUMNS, letters, letter_cells, letter_fields, empty=empty, limit=limit)


@click.command(
    epilog="""
    The exit code is 1 if one of them could not be revived: there is no such dead letter,
    or its bytes were never an event.

    \b
    Examples:
      $ dtimer revive charge-17 charge-18
      $ dtimer revive --all
      $ dtimer revive --reason failed
    """
)
@click.argument("ids", type=ID, nargs=-1, metavar="[ID]...")
@click.option("--all", "every", is_flag=True, help="All that are dead now.")
@click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    metavar="REASON",
    help="All that died for this reason, such as failed.",
)
@shared()
@click.pass_obj
def revive(settings: Settings, ids: tuple[str, ...], every: bool, reason: str | None) -> int:
    """
    Turn dead letters into waiting events, due now.

    Their attempts are counted from zero, and they do not expire.
    """
    if bool(ids) + every + (reason is not None) != 1:
        raise click.UsageError("give either the ids of dead letters, or --all, or --reason")
    revived, refused = 0, list[str]()
    with opened(settings) as timer:
        if reason is not None:
            revived = timer.revive_dead(reason)
        for id in (letter.id for letter in timer.dead()) if every else ids:
            if timer.revive(id):
                revived += 1
            else:
                refused.append(id)
    for id in refused:
        text = f"not revived: {escaped(id)} is not a dead letter, or was never an event"
        settings.output.notice(text, id=id)
    settings.output.result(f"revived {revived}", revived=revived, refused=len(refused))
    return ExitCode.NEGATIVE if refused else ExitCode.DONE


@click.command(
    epilog="""
    The exit code is 1 if one of them is not a dead letter.

    \b
    Examples:
      $ dtimer drop charge-17
    """
)
@click.argument("ids", type=ID, nargs=-1, required=True, metavar="ID...")
@shared()
@click.pass_obj
def drop(settings: Settings, ids: tuple[str, ...]) -> int:
    """Delete single dead letters permanently."""
    dropped = 0
    with opened(settings) as timer:
        for id in ids:
            if timer.drop(id):
                dropped += 1
            else:
                settings.output.notice(f"not deleted: {escaped(id)} is not a dead letter", id=id)
    settings.output.result(f"deleted {dropped}", dropped=dropped)
    return ExitCode.DONE if dropped == len(ids) else ExitCode.NEGATIVE


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer purge --yes
      $ dtimer purge --ns orders --yes --json
    """
)
@yes_option
@shared()
@click.pass_obj
def purge(settings: Settings, yes: bool) -> None:
    """Delete all dead letters permanently."""
    with opened(settings) as timer:
        what = f"Delete all dead letters of the namespace {settings.ns}"
        confirm_or_abort(what, yes=yes, count=lambda: timer.stats().dead)
        dropped = timer.purge_dead()
    settings.output.result(f"deleted {dropped}", dropped=dropped)
