"""The command ``import``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, BinaryIO

import click

from dtimer.cli.exits import Exit
from dtimer.cli.moving import lines
from dtimer.cli.moving.lines import BadLine
from dtimer.cli.moving.progress import progress
from dtimer.cli.options import shared
from dtimer.cli.server import Settings, opened_store
from dtimer.errors import OptionError, PayloadError
from dtimer.model.event import DeadLetter
from dtimer.model.names import Mint
from dtimer.model.options import validate
from dtimer.store.inventory import Inventory
from dtimer.timer.posting import Posting, chunks, prepare_item

#: Lines in a batch: a few round trips, and the most that is ever held.
_BATCH = 2_000

#: What another node has let in is let in again: the largest payload of all.
_LARGEST = 64 * 1024 * 1024

#: Dead letters in a call.
_LETTERS = 100


class Unreadable(click.ClickException):
    """A line cannot be read. Those of the batches before it have been imported."""

    exit_code = Exit.USAGE


@click.command(
    name="import",
    epilog="""
    An id that is pending already is kept as it is, and so is a schedule: importing the
    same file again changes nothing. Attempts are counted anew. A file that lacks its last
    line is imported as far as it goes, with exit code 1.

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
def load(settings: Settings, file: str) -> int:
    """Post what an export has written to FILE; - is stdin."""
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = sys.stdin.buffer
        size = None
        if file != "-":
            path = Path(file)
            stream = stack.enter_context(path.open("rb"))
            size = path.stat().st_size
        store = stack.enter_context(opened_store(settings))
        advance = stack.enter_context(progress(settings, "import", size, "bytes"))
        reader = _Reader(store)
        for raw in stream:
            reader.take(raw)
            if reader.batched == 0:
                advance(reader.bytes_done())
        reader.flush()
        advance(reader.bytes_done())
    counts = reader.counts
    if not reader.whole:
        settings.output.notice("the file ends early, or counts differ: it is not a whole export")
    told = "imported {events} events, {schedules} schedules, {dead} dead letters".format(**counts)
    settings.output.result(told, whole=reader.whole, **counts)
    return Exit.DONE if reader.whole else Exit.NO


class _Reader:
    """Reads line after line, and posts a batch at a time."""

    def __init__(self, store: Inventory) -> None:
        self._store = store
        self._options = validate({"max_payload": _LARGEST})
        self._mint = Mint()
        self._events: list[Posting] = []
        self._letters: list[DeadLetter] = []
        self._number = 0
        self._bytes = 0
        self.counts = {"events": 0, "schedules": 0, "dead": 0}
        self.whole = False

    @property
    def batched(self) -> int:
        """How many lines have been read and not been posted."""
        return len(self._events) + len(self._letters)

    def bytes_done(self) -> int:
        """Return how many bytes were read since this was last asked."""
        done, self._bytes = self._bytes, 0
        return done

    def take(self, raw: bytes) -> None:
        """
        Take a line.

        Raises:
            Unreadable: it cannot be read. What came before it is posted first.
        """
        self._number += 1
        self._bytes += len(raw)
        if not raw.strip():
            return
        try:
            self._take(lines.read_line(raw))
        except (BadLine, OptionError, PayloadError) as e:
            self.flush()
            done = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
            raise Unreadable(
                f"line {self._number} cannot be imported: {e}; what came before it has been"
                f" ({done}), and importing it again changes nothing"
            ) from None

    def _take(self, line: dict[str, Any]) -> None:
        kind = line["kind"]
        if kind == "event":
            self._events.append(prepare_item(self._options, self._mint, lines.posting(line)))
        elif kind == "dead":
            self._letters.append(lines.letter(line))
        elif kind == "schedule":
            self._schedule(lines.schedule(line))
        elif kind == "end":
            self.flush()
            self.whole = all(line.get(name) == count for name, count in self.counts.items())
        elif kind != "export":
            raise BadLine(f"there is no kind {kind!r}")
        elif line.get("version") != lines.VERSION:
            raise BadLine(f"it is of version {line.get('version')!r}, and this dtimer knows 1")
        if self.batched >= _BATCH:
            self.flush()

    def _schedule(self, plan: lines.Plan) -> None:
        # One that is there is kept, as an event is.
        if self._store.schedule(plan.definition.id) is None:
            self._store.declare(plan.definition)
            if plan.paused:
                self._store.suspend(plan.definition.id, on=True)
        self.counts["schedules"] += 1

    def flush(self) -> None:
        """Post what was read."""
        if self._events:
            for chunk in chunks(self._events):
                self._store.post(chunk.entries, chunk.policy)
            self.counts["events"] += len(self._events)
            self._events = []
        for at in range(0, len(self._letters), _LETTERS):
            self._store.restore(self._letters[at : at + _LETTERS])
        self.counts["dead"] += len(self._letters)
        self._letters = []
