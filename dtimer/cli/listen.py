"""The command ``listen``: a node that runs in the foreground until it is told to leave."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Generator
from datetime import timedelta

import click

from dtimer.cli import logs
from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.load_handler import Handler, load_handler
from dtimer.cli.logs import LEVELS
from dtimer.cli.options import shared
from dtimer.cli.output import Output, clock, escaped, lateness, payload, report_unwritable
from dtimer.cli.param_types import DURATION, ID
from dtimer.cli.server import Settings, chosen_url, opened
from dtimer.model.emission import Emission
from dtimer.model.event import Event
from dtimer.model.records import DeadLetter
from dtimer.router import Router
from dtimer.store.connection.sources import redacted
from dtimer.timer import DTimer
from dtimer.timer.signals import Signals


@click.command(
    epilog="""
    A handler is called with each batch of events, as a list. If it returns, they are
    confirmed. If it raises, they are retried later. A handler can also be a Router, which
    handles and settles each event on its own.

    On Ctrl-C or SIGTERM the node waits for running handlers and leaves. On a second signal
    it leaves at once. The exit code is 0. It is 1 if handlers were still running when --drain
    was over, or if the node left without a signal.

    In production use --log info --quiet, and a --drain that is a little shorter than the
    time after which your process manager kills the process.

    \b
    Examples:
      $ dtimer listen
      $ dtimer listen --handler shop.mail:send --concurrency 4
      $ dtimer listen --handler shop.mail:send --log info --quiet --drain 25s
    """
)
@click.option("--handler", metavar="MODULE:FUNCTION", help="Call it with each batch of events.")
@click.option("--concurrency", type=int, default=1, metavar="N", help="Handlers at a time.")
@click.option("--max-events", type=int, default=1, metavar="N", help="The most events in a batch.")
@click.option("--id", type=ID, metavar="NODE", help="The node's name; host and pid by default.")
@click.option("--log", type=click.Choice(LEVELS), help="Log on stderr, with time and level.")
@click.option("--quiet", "-q", is_flag=True, help="Do not print the events.")
@click.option("--drain", type=DURATION, help="How long to wait for handlers; no limit by default.")
@shared()
@click.pass_obj
def listen(  # noqa: PLR0917 - click passes them by name
    settings: Settings,
    handler: str | None,
    concurrency: int,
    max_events: int,
    id: str | None,
    log: str | None,
    quiet: bool,
    drain: timedelta | None,
) -> int:
    """Receive events, and print each one."""
    if quiet and handler is None:
        raise click.UsageError("--quiet needs a --handler: without one nothing would be done")
    output = settings.output
    if log is not None:
        # Before the handler is imported, so that the handler's module may change the logging.
        output = logs.start(log, as_json=settings.as_json)
    function = None if handler is None else load_handler(handler)
    node = id or f"{socket.gethostname()}-{os.getpid()}"
    with opened(settings, node, concurrency=concurrency, max_events=max_events) as timer:
        foreground = ForegroundNode(timer, output, function, quiet=quiet, drain=drain)
        return foreground.run(redacted(chosen_url(settings)))


class ForegroundNode:
    """Runs a node from join to leave, and prints its events, errors and dead letters."""

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
        # The exit code for a failed write of the output; None while writing succeeds.
        self._write_failure: int | None = None
        if isinstance(handler, Router):
            if not quiet:
                timer.on("event", self._print_all)
            timer.middleware(self._count)
            timer.on("event", handler)
        else:
            timer.on("event", self._received)
        timer.on("error", self._failed)
        timer.on("disconnected", self._disconnected)
        timer.on("connected", self._connected)
        timer.on("dead", self._dead_letter)
        timer.on("expired", self._dead_letter)

    def run(self, place: str) -> int:
        """Join, wait for a signal, and leave; return the exit code. *place* names the server."""
        signals = Signals(lambda: None, ("SIGINT", "SIGTERM", "SIGHUP"))
        try:
            # Before the join, because an early signal would kill the process.
            signals.catch()
            self._timer.join()
            self._output.notice(
                f"{self._timer.id} joined the namespace {self._timer.ns} on {place};"
                " Ctrl-C to leave",
                node=self._timer.id,
                ns=self._timer.ns,
                server=place,
            )
            signalled = False
            while self._timer.joined and not signalled:
                signalled = signals.wait(0.5)
        finally:
            signals.put_back()
        if signalled and (running := self._timer.health().handlers):
            self._output.notice(f"leaving; handlers still running: {running}", handlers=running)
        # From here on signals are not caught: the next one ends the process at once.
        self._timer.leave(self._drain)
        # Once the node has left, health() no longer counts its handlers.
        if still_running := self._running:
            self._output.notice(f"handlers left behind: {still_running}", handlers=still_running)
            return ExitCode.NEGATIVE
        if self._write_failure is not None and self._handler is None:
            return self._write_failure
        return ExitCode.DONE if signalled else ExitCode.NEGATIVE

    @contextlib.contextmanager
    def _count(self, emission: Emission) -> Generator[None]:
        """Count the running routes."""
        running = emission.kind is not None
        with self._lock:
            self._running += running
        try:
            yield
        finally:
            with self._lock:
                self._running -= running

    def _print_all(self, events: list[Event]) -> None:
        for event in events:
            try:
                self._print(event)
            except OSError as e:
                self._write_failure = report_unwritable(e, self._output)
                # Without a handler printing is the work, and it failed: the event is retried.
                if self._handler is None:
                    self._timer.leave()
                    raise

    def _received(self, events: list[Event]) -> None:
        if not self._quiet:
            self._print_all(events)
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
            (escaped(event.id), "cyan"),
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
        # A failed write of the output was already reported, by report_unwritable.
        if self._write_failure is None or not isinstance(error.__cause__, OSError):
            self._output.failure(error)

    def _disconnected(self, error: Exception) -> None:
        # _failed prints the error: the timer also emits it as 'error'.
        self._lost_redis = True

    def _connected(self) -> None:
        if self._lost_redis:
            self._lost_redis = False
            self._output.notice("Redis answers again")

    def _dead_letter(self, letter: DeadLetter) -> None:
        self._output.notice(
            f"dead letter: {escaped(letter.id)} ({letter.reason}, attempt {letter.attempt})",
            id=letter.id,
            reason=letter.reason,
            attempt=letter.attempt,
        )
