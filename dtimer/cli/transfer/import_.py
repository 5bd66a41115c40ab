"""The command ``import``."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import click

from dtimer.cli.exit_codes import ExitCode
from dtimer.cli.options import shared
from dtimer.cli.server import Settings, opened_store
from dtimer.cli.transfer import lines
from dtimer.cli.transfer.lines import BadLine
from dtimer.cli.transfer.progress import progress
from dtimer.errors import OptionError, PayloadError
from dtimer.model.ids import IdGenerator
from dtimer.model.options import validate
from dtimer.model.records import DeadLetter
from dtimer.store.admin import AdminStore
from dtimer.store.format import with_payload
from dtimer.store.store import Store
from dtimer.timer.posting import Posting, chunks, prepare_item

#: The most lines that the import keeps in memory. It then stores them in a few round trips.
_BATCH = 2_000

#: The largest payload that is imported: larger than the default limit, because the exporting
#: node may have had a larger one.
_MAX_PAYLOAD = 64 * 1024 * 1024

#: The most dead letters that one call of the store takes.
_LETTERS_PER_CALL = 100


class Unreadable(click.ClickException):
    """A line cannot be read. The lines before it have been imported."""

    exit_code: ClassVar[int] = ExitCode.USAGE


@click.command(
    name="import",
    epilog="""
    Pending events and schedules that exist already are kept, so importing a file again
    changes nothing. Attempts are counted from zero. If the last line of the file is missing,
    the lines before it are imported, and the exit code is 1.

    \b
    Examples:
      $ dtimer export events.jsonl --yes
      $ dtimer import events.jsonl
      $ dtimer import events.jsonl --ns orders --json
    """,
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@shared()
@click.pass_obj
def import_(settings: Settings, file: str) -> int:
    """Import the events of FILE, written by export; - is stdin."""
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = sys.stdin.buffer
        size = None
        if file != "-":
            path = Path(file)
            stream = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
        store = stack.enter_context(opened_store(settings))
        advance = stack.enter_context(progress(settings, "import", size))
        reader = _Reader(store)
        for raw in stream:
            reader.feed(raw)
            if reader.batched == 0:
                advance(reader.bytes_since_last_call())
        reader.flush()
        advance(reader.bytes_since_last_call())
    counts = reader.counts
    if not reader.complete:
        settings.output.notice(
            "the export is not complete: the file ends early, or the counts in its last line differ"
        )
    summary = "imported {events} events, {schedules} schedules, {dead} dead letters".format(
        **counts
    )
    settings.output.result(summary, whole=reader.complete, **counts)
    return ExitCode.DONE if reader.complete else ExitCode.NEGATIVE


class _Reader:
    """Reads the lines of an export, and stores their contents in batches."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._options = dataclasses.replace(
            validate({"max_payload": _MAX_PAYLOAD}), codec=store.coder
        )
        self._new_id = IdGenerator()
        self._events: list[Posting] = []
        self._letters: list[DeadLetter] = []
        self._number = 0
        self._bytes = 0
        self.counts = {"events": 0, "schedules": 0, "dead": 0}
        #: True once the last line has been read, and its counts are right.
        self.complete = False

    @property
    def batched(self) -> int:
        """The number of lines that have been read and not yet stored."""
        return len(self._events) + len(self._letters)

    def bytes_since_last_call(self) -> int:
        """Return the number of bytes read since the last call."""
        done, self._bytes = self._bytes, 0
        return done

    def feed(self, raw: bytes) -> None:
        """
        Read a line and add it to the batch; store the batch if it is full.

        Raises:
            Unreadable: the line cannot be read. The lines before it are stored first.
        """
        self._number += 1
        self._bytes += len(raw)
        if not raw.strip():
            return
        try:
            self._add(lines.read_line(raw))
        except (BadLine, OptionError, PayloadError) as e:
            self.flush()
            done = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
            raise Unreadable(
                f"line {self._number} cannot be imported: {e}; the lines before it have been"
                f" imported ({done}), and importing them again changes nothing"
            ) from None

    def _add(self, line: dict[str, Any]) -> None:
        kind = line["kind"]
        if kind == "event":
            self._events.append(self._posting(line))
        elif kind == "dead":
            self._letters.append(lines.letter(line, self._store.coder))
        elif kind == "schedule":
            self._store_schedule(lines.schedule(line, self._store.coder))
        elif kind == "end":
            self.flush()
            self.complete = all(line.get(name) == count for name, count in self.counts.items())
        elif kind != "export":
            raise BadLine(f"unknown kind {kind!r}")
        elif line.get("version") != lines.VERSION:
            raise BadLine(
                f"its version is {line.get('version')!r}, but this dtimer reads version 1"
            )
        if self.batched >= _BATCH:
            self.flush()

    def _posting(self, line: dict[str, Any]) -> Posting:
        posting = prepare_item(self._options, self._new_id, lines.posting(line))
        if (payload := lines.sealed_payload(line)) is None:
            return posting
        body = with_payload(posting.entry.body, payload)
        return posting._replace(entry=posting.entry._replace(body=body))

    def _store_schedule(self, line: lines.ScheduleLine) -> None:
        # An existing schedule is kept, like an existing event.
        if self._store.schedules.get(line.spec.id) is None:
            self._store.schedules.declare(line.spec)
            if line.paused:
                self._store.schedules.pause(line.spec.id, on=True)
        self.counts["schedules"] += 1

    def flush(self) -> None:
        """Store the lines that were read."""
        if self._events:
            for chunk in chunks(self._events):
                self._store.post(chunk.entries, chunk.policy)
            self.counts["events"] += len(self._events)
            self._events = []
        for at in range(0, len(self._letters), _LETTERS_PER_CALL):
            AdminStore(self._store).restore(self._letters[at : at + _LETTERS_PER_CALL])
        self.counts["dead"] += len(self._letters)
        self._letters = []
