"""The command ``top``."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator

import click

from dtimer.cli.options import shared
from dtimer.cli.server import Settings, opened_store
from dtimer.cli.tail import repeat
from dtimer.cli.top.screen import draw
from dtimer.errors import StoreError
from dtimer.monitor.sample import Frame, Sampler

#: Seconds between two frames.
_EACH = 1.0

#: Upcoming events in a frame as JSON, and at most on a screen.
_LISTED, _MOST = 10, 100

#: The width of a frame in a pipe, and the height of a frame that is printed.
_PIPE, _LINES = 160, 40


@click.command(
    epilog="""
    q or Ctrl-C ends it. If standard output is not a terminal, one frame is printed.

    \b
    Examples:
      $ dtimer top
      $ dtimer top --once
      $ dtimer top --json
    """
)
@click.option("--once", is_flag=True, help="Print one frame, and end.")
@shared()
@click.pass_obj
def top(settings: Settings, once: bool) -> None:
    """
    Watch the namespace on one screen.

    Shows how many events are due, in flight and dead, the nodes, and the next events.

    The sparkline shows the events confirmed per second during the last minute. With --json
    an object is printed every second.
    """
    with opened_store(settings) as store, contextlib.suppress(KeyboardInterrupt):
        sampler = Sampler(store)
        first = sampler.look(_LISTED if settings.as_json else _MOST)
        if settings.as_json:
            _objects(settings, sampler, first, once=once)
        elif once or not sys.stdout.isatty():
            _print(settings, first)
        else:
            _screen(settings, sampler, first)


def _print(settings: Settings, frame: Frame) -> None:
    from rich.console import Console

    console = settings.output.console(sys.stdout)
    if not sys.stdout.isatty():
        console = Console(file=sys.stdout, width=_PIPE, color_system=None, highlight=False)
    console.print(draw(frame, console.width, _LINES, encoding=console.encoding))


def _objects(settings: Settings, sampler: Sampler, first: Frame, *, once: bool) -> None:
    def print_frame(frame: Frame) -> None:
        settings.output.result(**frame.for_programs())

    print_frame(first)
    if not once:
        repeat(lambda: print_frame(sampler.look(_LISTED)), _EACH, settings.output)


def _screen(settings: Settings, sampler: Sampler, frame: Frame) -> None:
    from rich.live import Live

    console = settings.output.console(sys.stdout)
    with _keys() as ended, Live(console=console, screen=True, auto_refresh=False) as live:
        note = ""
        while True:
            # Read the size for each frame: the terminal may be resized.
            size = (frame, console.width, console.height, note)
            live.update(draw(*size, encoding=console.encoding), refresh=True)
            if ended(_EACH):
                return
            try:
                frame, note = sampler.look(_MOST), ""
            except StoreError as e:
                note = f"Redis does not answer: {e}"


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool | None]]:
    """Yield a function that waits for at most the given seconds; its result is true after a q."""
    try:
        import termios
        import tty

        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except Exception:
        # Standard input is not a terminal, or not one of this kind: Ctrl-C still works.
        yield time.sleep
        return
    try:
        tty.setcbreak(descriptor)
        yield lambda seconds: _pressed_q(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed_q(descriptor: int, seconds: float) -> bool:
    import os

    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            keys = os.read(descriptor, 64)
            if not keys or keys.lower().startswith(b"q"):
                return True
    return False
