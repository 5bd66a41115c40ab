"""Collect the records of a log, with and without a node."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from dtimer import log
from dtimer.log import Log, Message, Source

SOURCE = Source("node", "dt", "0" * 24)


class Logged:
    """A log whose records are kept, in place of a callback thread that writes them."""

    def __init__(self, *, debugging: bool = False, accepts: bool = True) -> None:
        self._accepts = accepts
        #: The messages, their arguments and the ids of the events.
        self.records: list[tuple[Message, tuple[Any, ...], list[str]]] = []
        #: The calls, as the callback thread would make them.
        self.calls: list[tuple[Any, ...]] = []
        self.log = Log(self._call, SOURCE)
        self.log.debugging = debugging

    def _call(self, function: Any, *arguments: Any) -> bool:
        if self._accepts:
            message, values, ids, _ = arguments
            self.records.append((message, values, list(ids)))
            self.calls.append((function, *arguments))
        return self._accepts

    def ids(self, message: Message) -> list[list[str]]:
        """Return the ids of each record of *message*."""
        return [ids for found, _, ids in self.records if found is message]


class Records(logging.Handler):
    """Keeps the records that reach the logger ``dtimer``."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.kept: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)

    def of(self, message: Message) -> list[Any]:
        """Return the records of *message*."""
        return [record for record in self.kept if record.msg == message.text]


@contextlib.contextmanager
def kept(level: int = logging.DEBUG) -> Iterator[Records]:
    """Keep all records from *level* on while the block runs."""
    records, before = Records(), log.logger.level
    log.logger.addHandler(records)
    log.logger.setLevel(level)
    try:
        yield records
    finally:
        log.logger.setLevel(before)
        log.logger.removeHandler(records)
