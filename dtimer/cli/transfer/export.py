"""The command ``export``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from dtimer.cli.options import shared
from dtimer.cli.prompts import confirm_or_abort, yes_option
from dtimer.cli.server import Settings, opened_store
from dtimer.cli.transfer.lines import VERSION, dead_line, event_line, schedule_line
from dtimer.cli.transfer.progress import Advance, progress
from dtimer.store.admin import AdminStore
from dtimer.store.store import Store

#: The lines between two steps of the progress bar.
_STEP = 500


@click.command(
    name="export",
    epilog="""
    Exports the waiting events, including those that wait for a retry, and the
    schedules. Events in flight are not exported; their number is printed on stderr. To move
    a namespace, pause it first, and wait until no event is in flight. Nothing is deleted.

    \b
    Examples:
      $ dtimer export events.jsonl --yes
      $ dtimer export --dead > events.jsonl
    """,
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--dead", is_flag=True, help="Export the dead letters too.")
@yes_option
@shared()
@click.pass_obj
def export(settings: Settings, file: Path | None, dead: bool, yes: bool) -> None:
    """Write the namespace to FILE, or to stdout, as JSON lines."""
    to_stdout = file is None or str(file) == "-"
    if file is not None and not to_stdout and file.exists():
        confirm_or_abort(f"Overwrite {file}", yes=yes)
    with opened_store(settings) as store:
        store.namespace.exports = True
        stats = store.stats()
        total = stats.scheduled + (stats.dead if dead else 0)
        with (
            _opened(None if to_stdout else file) as out,
            progress(settings, "export", total) as advance,
        ):
            counts = _Writer(store, out, advance).all(dead=dead)
        in_flight = store.stats().in_flight
    if in_flight:
        settings.output.notice(f"not exported, because in flight: {in_flight}", in_flight=in_flight)
    if counts["skipped"]:
        settings.output.notice(f"not exported, because unreadable: {counts['skipped']}")
    summary = "exported {events} events, {schedules} schedules, {dead} dead letters".format(
        **counts
    )
    if to_stdout:
        settings.output.notice(summary, **counts)
    else:
        settings.output.result(summary, file=str(file), **counts)


@contextlib.contextmanager
def _opened(file: Path | None) -> Iterator[BinaryIO]:
    """Yield the output stream. A file gets its name only when it is complete."""
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = file.with_name(f"{file.name}.part")
    try:
        stream = part.open("wb")
    except OSError as e:
        raise click.FileError(str(part), e.strerror or str(e)) from None
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


class _Writer:
    """Writes the lines of an export, and counts them."""

    def __init__(self, store: Store, out: BinaryIO, advance: Advance) -> None:
        self._store = store
        self._admin = AdminStore(store)
        self._write: Callable[[bytes], object] = out.write
        self._advance = advance
        self._counts = {"events": 0, "schedules": 0, "dead": 0, "skipped": 0}

    def all(self, *, dead: bool) -> dict[str, int]:
        """Write the whole namespace; return the number of lines of each kind."""
        at = self._store.namespace.server_now() / 1000
        self._object(kind="export", version=VERSION, ns=self._store.ns, at=at)
        pending = set[str]()
        for spec, paused, occurrence in self._admin.specs():
            # Not exported: the imported schedule creates this occurrence again.
            pending.add(occurrence)
            self._write(schedule_line(spec, paused=paused, coder=self._store.coder))
            self._counts["schedules"] += 1
        for event in self._admin.waiting():
            if event.id not in pending or event.attempt:
                self._line("events", event_line(event, self._store.coder))
        if dead:
            for letter in self._admin.died_after("\0", 0):
                self._line("dead", dead_line(letter))
        self._advance(self._done() % _STEP)
        self._object(kind="end", **{n: c for n, c in self._counts.items() if n != "skipped"})
        return self._counts

    def _done(self) -> int:
        return self._counts["events"] + self._counts["dead"]

    def _line(self, kind: str, line: bytes | None) -> None:
        if line is None:
            self._counts["skipped"] += 1
            return
        self._write(line)
        self._counts[kind] += 1
        if self._done() % _STEP == 0:
            self._advance(_STEP)

    def _object(self, **fields: object) -> None:
        self._write(json.dumps(fields).encode() + b"\n")
