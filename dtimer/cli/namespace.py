"""The commands about a whole namespace: pause, resume, clear, upgrade, nodes and health."""

from __future__ import annotations

import dataclasses
import time
from datetime import timedelta
from typing import Any

import click

from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.options import shared
from dtimer.cli.output import brief, escaped, moment
from dtimer.cli.param_types import DURATION, ID
from dtimer.cli.prompts import confirm_or_abort, yes_option
from dtimer.cli.server import Settings, opened, opened_store
from dtimer.cli.tables import Column, show
from dtimer.errors import StoreError
from dtimer.model.records import NodeInfo
from dtimer.model.times import format_duration
from dtimer.monitor.fields import stats_fields
from dtimer.monitor.judgement import Check, judge, node_state
from dtimer.store.admin import AdminStore
from dtimer.store.namespace import SCHEMA


def _set_paused(settings: Settings, schedule: str | None, *, paused: bool) -> int:
    done = "paused" if paused else "resumed"
    with opened(settings) as timer:
        if schedule is None:
            changed = timer.pause() if paused else timer.resume()
            about = f"the namespace {settings.ns}"
        else:
            change = timer.pause_schedule if paused else timer.resume_schedule
            changed = change(schedule)
            about = f"the schedule {escaped(schedule)}"
            if not changed and timer.schedule(schedule) is None:
                return settings.output.missing("schedule", schedule)
    was = "was paused already" if paused else "was not paused"
    text = f"{done} {about}" if changed else f"{about} {was}"
    settings.output.result(text, ns=settings.ns, schedule=schedule, changed=changed)
    return ExitCode.DONE


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer pause
      $ dtimer pause --schedule report
    """
)
@click.option("--schedule", type=ID, metavar="ID", help="Pause only this schedule.")
@shared()
@click.pass_obj
def pause(settings: Settings, schedule: str | None) -> int:
    """
    Stop delivering events; posting still works.

    Running handlers finish.
    """
    return _set_paused(settings, schedule, paused=True)


@click.command(
    epilog="""
    \b
    Examples:
      $ dtimer resume
      $ dtimer resume --schedule report
    """
)
@click.option("--schedule", type=ID, metavar="ID", help="Resume only this schedule.")
@shared()
@click.pass_obj
def resume(settings: Settings, schedule: str | None) -> int:
    """Deliver events again; overdue events are delivered at once."""
    return _set_paused(settings, schedule, paused=False)


@click.command(
    epilog="""
    The nodes, the totals and a pause stay. A running handler finishes, and its event is not
    retried. Programs that declare schedules when they start will declare them again.

    \b
    Examples:
      $ dtimer clear --yes
      $ dtimer clear --ns orders --yes --json
    """
)
@yes_option
@shared()
@click.pass_obj
def clear(settings: Settings, yes: bool) -> None:
    """Delete all events, dead letters and schedules permanently."""
    with opened(settings) as timer:
        what = f"Delete all events, dead letters and schedules of the namespace {settings.ns}"

        def count() -> int:
            stats = timer.stats()
            schedules = sum(1 for _ in timer.schedules())
            return stats.scheduled + stats.in_flight + stats.dead + schedules

        confirm_or_abort(what, yes=yes, count=count)
        cleared = timer.clear()
    text = f"deleted {cleared.events} events, {cleared.dead} dead letters,"
    settings.output.result(f"{text} {cleared.schedules} schedules", **dataclasses.asdict(cleared))


@click.command(
    epilog="""
    Run this when all processes use the new dtimer: the nodes, and the programs that only
    post. Until then a new dtimer stores what the version before it can read, so you can
    still roll back. Afterwards the old dtimer is refused.

    The exit code is 1 if a node of an older dtimer was heard of in the last minute.
    Nothing is then changed.

    \b
    Examples:
      $ dtimer upgrade
      $ dtimer upgrade --json
    """
)
@shared()
@click.pass_obj
def upgrade(settings: Settings) -> int:
    """Let the namespace use the stored forms of this dtimer."""
    with opened_store(settings) as store:
        if not store.namespace.exists():
            return settings.output.missing("namespace", settings.ns)
        version, older = AdminStore(store).upgrade()
    upgraded = version != SCHEMA and not older
    text = f"the namespace has version {version} already, the latest that this dtimer knows"
    if older:
        text = f"not upgraded: nodes of an older dtimer were heard of in the last minute ({older})"
    elif upgraded:
        text = f"upgraded from version {version} to version {SCHEMA}"
    settings.output.result(text, upgraded=upgraded, version=version, older=older)
    return ExitCode.NEGATIVE if older else ExitCode.DONE


_NODES = (
    Column("node", "cyan", fold=True),
    Column("state"),
    Column("last seen", "dim"),
    Column("host", fold=True),
    Column("pid"),
    Column("threads"),
    Column("joined", takes_rest=True),
)


def node_cells(node: NodeInfo, narrow: bool) -> list[str]:
    """Return the row of a node in a table; *narrow* asks for a short time."""
    heard = f"{format_duration(node.idle_ms)} ago"
    joined = brief(node.joined) if narrow else moment(node.joined)
    threads = f"{node.used} of {node.threads}"
    host = escaped(node.host)
    return [escaped(node.id), node_state(node), heard, host, str(node.pid), threads, joined]


@click.command(
    epilog="""
    A waiting node has free threads; a busy node has none. A node without a listener has
    joined, but its program has registered no handler of events. Nodes that have not been
    seen for a minute are removed from the list.

    \b
    Examples:
      $ dtimer nodes
      $ dtimer nodes --json
    """
)
@shared()
@click.pass_obj
def nodes(settings: Settings) -> None:
    """List the nodes that have joined."""
    with opened(settings) as timer:
        found = sorted(timer.nodes(), key=lambda node: (node.id, node.incarnation))
    empty = f"no node has joined the namespace {settings.ns}"
    show(settings, _NODES, found, node_cells, dataclasses.asdict, empty=empty)


@click.command(
    epilog="""
    The exit code is 0 if all checks pass and 1 if one fails, including when Redis cannot
    be reached. Use it for a monitor, or as the probe of a container.

    \b
    Examples:
      $ dtimer health --min-nodes 0
      $ dtimer health --min-nodes 0 --max-overdue 1m --json
    """
)
@click.option(
    "--max-overdue",
    type=DURATION,
    default="10s",
    show_default=True,
    metavar="DURATION",
    help="How long an event may be overdue.",
)
@click.option(
    "--min-nodes",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="How many nodes must have joined.",
)
@shared()
@click.pass_obj
def health(settings: Settings, max_overdue: timedelta, min_nodes: int) -> int:
    """
    Check that events are delivered; the exit code gives the result.

    Checks that the server can be reached, enough nodes have joined, no event is overdue for too
    long, and the namespace is not paused.
    """
    began = time.monotonic()
    numbers: dict[str, Any] = {}
    try:
        with opened(settings) as timer:
            stats = timer.stats()
    except StoreError as e:
        checks = [Check("reachable", False, escaped(str(e)))]
    else:
        took = (time.monotonic() - began) * 1000
        checks = [Check("reachable", True, f"in {took:.1f} ms")]
        checks += judge(stats, min_nodes, max_overdue / timedelta(milliseconds=1))
        numbers = stats_fields(stats)
    ok = all(check.ok for check in checks)
    if settings.as_json:
        results = {check.key or check.name: check.ok for check in checks}
        settings.output.result(**{"ns": settings.ns, "ok": ok, "checks": results} | numbers)
    else:
        for check in checks:
            word, style = ("ok", "green") if check.ok else ("BAD", "bold red")
            settings.output.result((f"{word:<4}", style), f"{check.name:<11}", check.text)
    return ExitCode.DONE if ok else ExitCode.NEGATIVE
