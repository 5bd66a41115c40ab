"""The command ``tail``: prints the activity of a namespace as it happens."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import click

from dtimer.cli.options import shared
from dtimer.cli.output import Output, clock, escaped, payload
from dtimer.cli.param_types import DURATION
from dtimer.cli.server import Settings, opened_store
from dtimer.errors import StoreError
from dtimer.model.records import DeadLetter
from dtimer.monitor.fields import letter_fields
from dtimer.store.admin import AdminStore
from dtimer.store.store import Store


@click.command(
    epilog="""
    dtimer reads the namespace once a second and prints the changes since the last time.
    Ctrl-C ends it.

    \b
    Examples:
      $ dtimer tail
      $ dtimer tail --json
    """
)
@click.option(
    "--interval", type=DURATION, default="1s", show_default=True, help="How often to read."
)
@shared()
@click.pass_obj
def tail(settings: Settings, interval: timedelta) -> None:
    """
    Follow the activity of a namespace, line by line.

    Prints how many events were posted, started and confirmed, and which became dead letters.
    """
    seconds = max(0.05, interval.total_seconds())
    with opened_store(settings) as store, contextlib.suppress(KeyboardInterrupt):
        follow = Follow(store, settings.output)
        follow.look()
        settings.output.notice(f"following the namespace {settings.ns}; Ctrl-C to end")
        repeat(follow.look, seconds, settings.output)


def repeat(look: Callable[[], None], seconds: float, output: Output) -> None:
    """Call *look* every *seconds*, and report an outage once; only Ctrl-C ends the loop."""
    # An event that is never set: only its time-out ends the wait.
    pause = threading.Event()
    lost = False
    while not pause.wait(seconds):
        try:
            look()
        except StoreError as e:
            if not lost:
                output.failure(e)
            lost = True
        else:
            if lost:
                output.notice("Redis answers again")
            lost = False


class Follow:
    """Remembers the state that was read last, and prints the changes."""

    def __init__(self, store: Store, output: Output) -> None:
        self._store = store
        self._admin = AdminStore(store)
        self._output = output
        self._totals: dict[str, int] | None = None
        self._paused = False
        # The dead letter that was printed last, and the time of its death in µs.
        self._last_id, self._last_died = "", 0
        # All that were printed with this time of death, because several may die in one µs.
        self._printed: set[str] = set()

    def look(self) -> None:
        """Read the state, and print the changes. The first call prints nothing."""
        stats = self._store.stats()
        if self._totals is None:
            # The position before all dead letters of this moment: NUL sorts before every id.
            self._last_id, self._last_died = "\0", self._store.namespace.server_now()
            self._totals, self._paused = stats.totals, stats.paused
            return
        for letter in self._admin.died_after(self._last_id, self._last_died):
            died = round(letter.died * 1000)
            if died != self._last_died:
                self._last_id, self._last_died, self._printed = letter.id, died, set()
            if letter.id not in self._printed:
                self._printed.add(letter.id)
                self._last_id = letter.id
                self._print_dead(letter)
        if stats.paused != self._paused:
            self._paused = stats.paused
            word = "paused" if stats.paused else "resumed"
            self._output.result(f"{self._now()}  {word}", kind=word, at=time.time() * 1000)
        changes = {
            name: count - self._totals.get(name, 0)
            for name, count in stats.totals.items()
            if count != self._totals.get(name, 0)
        }
        self._totals = stats.totals
        if changes:
            text = "  ".join(f"{name} {count:+d}" for name, count in changes.items())
            summary = f"scheduled {stats.scheduled}, in flight {stats.in_flight}"
            self._output.result(
                (f"{self._now()}  ", "dim"),
                text,
                (f"  ({summary}, dead {stats.dead})", "dim"),
                kind="totals",
                at=time.time() * 1000,
                changes=changes,
                scheduled=stats.scheduled,
                in_flight=stats.in_flight,
                overdue=stats.overdue,
                dead=stats.dead,
                nodes=stats.nodes,
            )

    def _print_dead(self, letter: DeadLetter) -> None:
        self._output.result(
            (f"{clock(letter.died)}  ", "dim"),
            ("dead  ", "bold red"),
            (escaped(letter.id), "cyan"),
            f"  {letter.reason}, starts {letter.attempt}  ",
            (f"{escaped(letter.error)}  ", "yellow"),
            payload(letter.event, letter.sealed),
            kind="dead",
            **letter_fields(letter),
        )

    @staticmethod
    def _now() -> str:
        return clock(time.time() * 1000)
