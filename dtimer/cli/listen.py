"""The command ``listen``: a node, in the foreground, until it is told to leave."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import click

from dtimer.cli import logs
from dtimer.cli.exits import Exit
from dtimer.cli.handlers import Handler, load_handler
from dtimer.cli.logs import LEVELS
from dtimer.cli.options import shared
from dtimer.cli.output import Output, clock, lateness, payload, unwritable, visible
from dtimer.cli.params import DURATION, ID
from dtimer.cli.server import Settings, named, opened
from dtimer.model.event import DeadLetter, Event
from dtimer.store.connect import where
from dtimer.timer import DTimer


@click.command(
    epilog="""
    With a handler each batch of events is given to it, as a list; it confirms them by
    returning. If it raises, they are retried, and come back later.

    Ctrl-C, or SIGTERM, has running handlers end and the node leave; once more has it
    leave at once. The exit code is then 0, or 1 when handlers were left behind (--drain),
    or when the node left by itself.

    In production: --log info --quiet, and --drain a little less than your supervisor
    waits before it kills.

    \b
    Examples:
      $ dtimer listen
      $ dtimer listen --handler shop.mail:send --concurrency 4
      $ dtimer listen --handler shop.mail:send --log info --quiet --drain 25s
    """
)
@click.option("--handler", metavar="MODULE:FUNCTION", help="Called with each batch of events.")
@click.option("--concurrency", type=int, default=1, metavar="N", help="Handlers at a time.")
@click.option("--max-events", type=int, default=1, metavar="N", help="Events in a batch, at most.")
@click.option("--id", type=ID, metavar="NODE", help="The node's name; host and pid by default.")
@click.option("--log", type=click.Choice(LEVELS), help="Log on stderr, with time and level.")
@click.option("--quiet", "-q", is_flag=True, help="Do not print the events.")
@click.option("--drain", type=DURATION, help="How long handlers may take to end; for ever.")
@shared()
@click.pass_obj
def listen(  # noqa: PLR0917 - click gives them by name
    settings: Settings,
    handler: str | None,
    concurrency: int,
    max_events: int,
    id: str | None,
    log: str | None,
    quiet: bool,
    drain: timedelta | None,
) -> int:
    """Receive events, and print each."""
    if quiet and handler is None:
        raise click.UsageError("without a --handler to print is all that is done: not --quiet")
    output = settings.output
    if log is not None:
        # Before the handler is imported: what that logs, or sets up, is its own.
        output = logs.start(log, as_json=settings.as_json)
    function = None if handler is None else load_handler(handler)
    node = id or f"{socket.gethostname()}-{os.getpid()}"
    with opened(settings, node, concurrency=concurrency, max_events=max_events) as timer:
        watch = Watch(timer, output, function, quiet=quiet, drain=drain)
        return watch.run(where(named(settings)))


class Watch:
    """What a listening node says, and its life from join to leave."""

    def __init__(
        self,
        timer: DTimer,
        output: Output,
        handler: Handler | None,
        *,
        quiet: bool = False,
        drain: timedelta | None = None,
    ) -> None:
        self._timer = timer
        self._quiet = quiet
        self._drain = drain
        self._lock = threading.Lock()
        self._running = 0
        self._output = output
        self._handler = handler
        self._lost_redis = False
        # The exit code of an output that has failed.
        self._unwritable: int | None = None
        timer.on("event", self._received)
        timer.on("error", self._failed)
        timer.on("disconnected", self._disconnected)
        timer.on("connected", self._connected)
        timer.on("dead", self._given_up)
        timer.on("expired", self._given_up)

    def run(self, place: str) -> int:
        """Join, wait for a signal, and leave; return the exit code. *place* is the server's."""
        with _signals() as caught:
            self._timer.join()
            self._output.notice(
                f"{self._timer.id} joined the namespace {self._timer.ns} on {place};"
                " Ctrl-C to leave",
                node=self._timer.id,
                ns=self._timer.ns,
                server=place,
            )
            told = False
            while self._timer.joined and not told:
                with contextlib.suppress(queue.Empty):
                    caught.get(timeout=0.5)
                    told = True
        if told and (running := self._timer.health().handlers):
            self._output.notice(f"leaving; handlers that still run: {running}", handlers=running)
        # The next signal is not caught any more, and ends this at once.
        self._timer.leave(self._drain)
        # Of a life that is over the timer tells no more.
        if left := self._running:
            self._output.notice(f"handlers left behind: {left}", handlers=left)
            return Exit.NO
        if self._unwritable is not None and self._handler is None:
            return self._unwritable
        return Exit.DONE if told else Exit.NO

    def _received(self, events: list[Event]) -> None:
        for event in () if self._quiet else events:
            try:
                self._print(event)
            except OSError as e:
                self._unwritable = unwritable(e, self._output)
                # Without a handler to print it was all there was to do: it is retried.
                if self._handler is None:
                    self._timer.leave()
                    raise
        if self._handler is None:
            return
        with self._lock:
            self._running += 1
        try:
            self._handler(events)
        finally:
            with self._lock:
                self._running -= 1

    def _print(self, event: Event) -> None:
        self._output.result(
            (visible(event.id), "cyan"),
            f"  due {clock(event.due)}",
            f"  late {lateness(event.lateness_ms)}",
            (f"  attempt {event.attempt}", "yellow" if event.attempt > 1 else ""),
            f"  {payload(event)}",
            id=event.id,
            event=dict(event),
            attempt=event.attempt,
            max_retries=event.max_retries,
            due=event.due,
            lateness_ms=event.lateness_ms,
            token=event.token,
            node=self._timer.id,
        )

    def _failed(self, error: Exception) -> None:
        if self._unwritable is None or not isinstance(error.__cause__, OSError):
            self._output.failure(error)

    def _disconnected(self, error: Exception) -> None:
        # The error itself is told as an error.
        self._lost_redis = True

    def _connected(self) -> None:
        if self._lost_redis:
            self._lost_redis = False
            self._output.notice("Redis answers again")

    def _given_up(self, letter: DeadLetter) -> None:
        self._output.notice(
            f"dead letter: {visible(letter.id)} ({letter.reason}, attempt {letter.attempt})",
            id=letter.id,
            reason=letter.reason,
            attempt=letter.attempt,
        )


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[Any]]:
    """
    Catch the signals that mean the end, from before the node joins.

    Of a signal handler no more may be asked than this: a put into a SimpleQueue.
    """
    caught: queue.SimpleQueue[Any] = queue.SimpleQueue()
    before: dict[int, Any] = {}
    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # Under nohup a hang-up is to be ignored.
            if number and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                before[number] = signal.signal(number, lambda n, _: caught.put(n))
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
