"""The command ``cancel``: one event, several, or all that have something in common."""

from __future__ import annotations

from collections.abc import Iterator

import click

from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.options import shared
from dtimer.cli.param_types import ID
from dtimer.cli.server import Settings, opened
from dtimer.model.records import Cancelled
from dtimer.timer import DTimer

_OUTCOMES = {
    Cancelled.CANCELLED: (ExitCode.DONE, "cancelled: it will never start"),
    Cancelled.IN_FLIGHT: (ExitCode.STARTED, "in flight: it has started; it will not be retried"),
    Cancelled.NOT_FOUND: (ExitCode.NEGATIVE, "not found: no event with this id is pending"),
}


@click.command(
    epilog="""
    --prefix and --kind look at the events that are waiting now, and cancel those that match
    both. Events that are running are left alone, and so are events posted meanwhile. A
    schedule whose pending occurrence is cancelled goes on with the next one.

    The exit code is 5 if one of the events has started already, and otherwise 1 if one of
    the given IDs is not pending.

    \b
    Examples:
      $ dtimer post '{"msg": "tea"}' 4m --id tea
      $ dtimer cancel tea
      $ dtimer cancel --prefix user-7-
      $ dtimer cancel --kind remind
    """
)
@click.argument("ids", type=ID, nargs=-1, metavar="[ID]...")
@click.option("--prefix", metavar="TEXT", help="All waiting events whose ids begin so.")
@click.option("--kind", metavar="TEXT", help="All waiting events with this value in --field.")
@click.option(
    "--field",
    default="type",
    show_default=True,
    metavar="NAME",
    help="The field of the payload that holds the kind.",
)
@shared()
@click.pass_obj
def cancel(
    settings: Settings, ids: tuple[str, ...], prefix: str | None, kind: str | None, field: str
) -> int:
    """
    Cancel events: they never start, or are not retried.

    A running event is not stopped.
    """
    chosen = prefix is not None or kind is not None
    if bool(ids) == chosen:
        raise click.UsageError("give either the ids of events, or --prefix or --kind")
    if prefix == "":
        raise click.UsageError("an empty --prefix is that of all events; to delete all, use clear")
    with opened(settings) as timer:
        if len(ids) == 1:
            outcome = timer.cancel(ids[0])
            code, text = _OUTCOMES[outcome]
            settings.output.result(text, id=ids[0], outcome=outcome.value)
            return code
        counts = timer.cancel_many(_matching(timer, prefix or "", kind, field) if chosen else ids)
    words = [f"{outcome.value.replace('_', ' ')} {n}" for outcome, n in counts.items()]
    settings.output.result(", ".join(words), **{o.value: n for o, n in counts.items()})
    if counts[Cancelled.IN_FLIGHT]:
        return ExitCode.STARTED
    # An event that matched and is gone since was handled, or another process has cancelled it.
    return ExitCode.NEGATIVE if counts[Cancelled.NOT_FOUND] and ids else ExitCode.DONE


def _matching(timer: DTimer, prefix: str, kind: str | None, field: str) -> Iterator[str]:
    """Yield the ids of the waiting events that match."""
    for record in timer.upcoming():
        is_kind = kind is None or (record.event or {}).get(field) == kind
        if is_kind and record.id.startswith(prefix):
            yield record.id
