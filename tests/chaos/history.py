"""
Write and read a history: what each process did, in a form that survives ``kill -9``.

A history is a folder with one file for each process. Each line is one record, a JSON object. A
record is one ``os.write`` to a file opened with ``O_APPEND``. So the file of a killed process has
all that it wrote, and at most its last line is torn.

The fields of every record:

``t``
    The monotonic clock in ns, which the processes of one host share.
``p``
    The process (``node-1.7812``).
``op``
    The operation.
``ph``
    Its phase: ``inv`` (about to begin), ``ok``, ``no`` (certainly refused) or ``info`` (the
    outcome is unknown).
``k``
    Pairs the two records of a call. A burst has two records for each item, all with one ``k``.

Further fields of the records about an event:

``id``
    The id of the event. For an occurrence, it ends in ``@`` and the nominal time.
``n``, ``crc``
    The number of the post, which no other post has, and the checksum of the payload.
``tok``, ``att``
    The token of the claim, and the number of the attempt.
``due``, ``srv``
    When the event is due and when it was claimed, by the server's clock, in µs.

A note is a single record of something without a duration: see `NOTES`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

from dtimer.errors import DTimerError, OutcomeUnknown

#: Operations with one record.
NOTES = {
    *("auto", "claim", "dead", "expired", "fault", "final", "kill", "lost", "node", "phase"),
    *("recovered", "retried", "stall"),
}

#: A thread reads the clock before it writes, so lines may be out of order by up to this many.
_SWAPPED = 256

#: The number of bytes that are read and parsed at a time.
_BLOCK = 1 << 18

# The fields that become attributes of an `Operation`. All others are its ``data``.
_FRAME = ("op", "p", "t", "ph", "k", "id")


class HistoryError(Exception):
    """The history cannot be read: a line or an operation breaks the format."""


class Operation(NamedTuple):
    """
    A call, from its ``inv`` to its end, or a note.

    ``ph`` says how the call ended. If no end was recorded, ``ph`` is ``open`` and ``end`` is None.
    ``id`` is None if the operation has none. ``data`` has all other fields of both records.
    """

    op: str
    p: str
    t: int
    end: int | None
    ph: str
    id: str | None
    data: dict[str, Any]

    @property
    def unknown(self) -> bool:
        """True if the operation may or may not have taken effect."""
        return self.ph in ("open", "info")

    def __str__(self) -> str:
        lasted = "       open" if self.end is None else f"+{(self.end - self.t) / 1e6:7.3f} ms"
        more = " ".join(f"{k}={v!r}" for k, v in self.data.items())
        return f"{self.t / 1e9:.6f} {lasted} {self.p} {self.op} {self.ph} {self.id!r} {more}"


def checksum(payload: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a payload's canonical JSON, which represents it in a history."""
    return zlib.crc32(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode())


def claimed_us(ev: Any) -> int:
    """Return the server's time of the claim. The handler may have received the event later."""
    claim = getattr(ev._holder, "claim", None)
    return round((ev.due + ev.lateness_ms) * 1000) if claim is None else claim.claimed_us


def run_of(ev: Any, lease_us: int, ahead_us: int = 0) -> dict[str, Any]:
    """
    Return the fields of a ``run`` record for an event that a handler received.

    Args:
        ev: The event.
        lease_us: The length of the node's leases.
        ahead_us: How long before its due time the node may claim the event.
    """
    return {
        "id": ev.id,
        "n": ev.get("n"),
        "tok": ev.token,
        "att": ev.attempt,
        "due": round(ev.due * 1000),
        "srv": claimed_us(ev),
        "late_us": round(ev.lateness_ms * 1000),
        "lease_us": lease_us,
        "ahead_us": ahead_us,
        "crc": checksum(ev),
        **({"missed": ev.missed} if ev.schedule is not None else {}),
    }


class Writer:
    """
    Records the operations of one process, from any of its threads.

    After a fork, the child writes a file of its own.

    Args:
        folder: The folder of the history. It is created if necessary.
        name: The name of the process. The records add its pid.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._name = name
        self._pid = 0
        self._descriptor = -1
        self._open()

    def _open(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._pid = os.getpid()
        for use in itertools.count(1):
            # The kernel may give a pid to a second process of this name.
            self.p = f"{self._name}.{self._pid}" + (f"-{use}" if use > 1 else "")
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with contextlib.suppress(FileExistsError):
                self._descriptor = os.open(self._folder / f"{self.p}.jsonl", flags, 0o644)
                break
        self._calls = itertools.count(1)

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise HistoryError(f"only a part of a line was written: {line[:100]!r}")

    def _say(self, op: str, ph: str, k: int | None, fields: dict[str, Any]) -> None:
        if self._pid != os.getpid():
            self._open()
        record = {"t": time.monotonic_ns(), "p": self.p, "op": op, "ph": ph}
        if k is not None:
            record["k"] = k
        self._write(record | fields)

    def inv(self, op: str, *, k: int | None = None, **fields: Any) -> int:
        """Record that *op* is about to begin; return its ``k``. Give *k* to add to a burst."""
        if self._pid != os.getpid():
            self._open()
        k = next(self._calls) if k is None else k
        self._say(op, "inv", k, fields)
        return k

    def end(self, op: str, k: int, ph: str = "ok", **fields: Any) -> None:
        """Record how the call *k* ended."""
        self._say(op, ph, k, fields)

    def note(self, op: str, **fields: Any) -> None:
        """Record something without a duration."""
        self._say(op, "ok", None, fields)

    @contextlib.contextmanager
    def ending(self, op: str, k: int) -> Iterator[dict[str, Any]]:
        """
        Record the outcome of the call *k* when the block ends.

        Yields:
            A dictionary to fill with further fields of the call's end.
        """
        said: dict[str, Any] = {}
        try:
            yield said
        except BaseException as e:
            # An exception that is not the library's may have been raised at any moment.
            refused = isinstance(e, DTimerError) and not isinstance(e, OutcomeUnknown)
            self.end(op, k, "no" if refused else "info", error=f"{type(e).__name__}: {e}"[:200])
            raise
        self.end(op, k, "ok", **said)

    def call(self, op: str, **fields: Any) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Record the beginning of a call of the library now, and its outcome as in `ending`."""
        return self.ending(op, self.inv(op, **fields))

    def close(self) -> None:
        if self._descriptor >= 0 and self._pid == os.getpid():
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class History:
    """
    The records of a run, read from their folder.

    Attributes:
        torn: How many files ended in an incomplete line, of those read so far.
        lines: How many lines were read so far.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.torn = 0
        self.lines = 0
        self.files = sorted(self.folder.glob("*.jsonl"))
        if not self.files:
            raise HistoryError(f"there is no history in {self.folder}")

    def records(self, path: Path) -> Iterator[dict[str, Any]]:
        """
        Yield the records of one process, in the order in which they were written.

        Raises:
            HistoryError: A complete line is not a valid record.
        """
        rest, number = b"", 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                whole, newline, rest = (rest + block).rpartition(b"\n")
                if newline:
                    records = _parsed(whole, path, number)
                    number += len(records)
                    self.lines += len(records)
                    yield from records
        self.torn += bool(rest)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the records of all processes, sorted by time."""
        return heapq.merge(*map(self._sorted, self.files), key=itemgetter("t"))

    def _sorted(self, path: Path) -> Iterator[dict[str, Any]]:
        held: list[tuple[int, int, dict[str, Any]]] = []
        for i, record in enumerate(self.records(path)):
            heapq.heappush(held, (record["t"], i, record))
            if len(held) > _SWAPPED:
                yield heapq.heappop(held)[2]
        while held:
            yield heapq.heappop(held)[2]

    def operations(self) -> Iterator[Operation]:
        """Yield the calls and notes, one process after another, each sorted by their ends."""
        for path in self.files:
            yield from self._pair(path)

    def _pair(self, path: Path) -> Iterator[Operation]:
        begun: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
        for record in self.records(path):
            op, ph = record["op"], record["ph"]
            if op in NOTES:
                yield _operation(record, record["t"], record["t"], "ok")
                continue
            call = (op, record.get("k"))
            if ph == "inv":
                if call[1] is None:
                    raise HistoryError(f"{path}: an inv without a k: {record}")
                others = begun.setdefault(call, [])
                others.append(record)
                if len(others) > 1:
                    # An item of a burst has no deadline of its own.
                    others[0]["burst"] = record["burst"] = True
                continue
            waiting = begun.get(call)
            if not waiting:
                if call[1] is not None:
                    raise HistoryError(f"{path}: the end of a call that had not begun: {record}")
                yield _operation(record, record["t"], record["t"], ph)
                continue
            for first in _ended(waiting, record):
                yield _operation(first | record, first["t"], record["t"], ph)
            if not waiting:
                del begun[call]
        for waiting in begun.values():
            for record in waiting:
                yield _operation(record, record["t"], None, "open")


def _parsed(lines: bytes, path: Path, number: int) -> list[dict[str, Any]]:
    """
    Parse complete lines, all at once if they are valid.

    Args:
        lines: The lines, without the last newline.
        path: The file, for the text of an error.
        number: How many lines of the file come before these.
    """
    with contextlib.suppress(ValueError):
        records: list[Any] = json.loads(b"[%b]" % lines.replace(b"\n", b","))
        if len(records) == lines.count(b"\n") + 1 and all(map(_is_record, records)):
            return records
    records = []
    for i, line in enumerate(lines.split(b"\n"), number + 1):
        record = None
        with contextlib.suppress(ValueError):
            record = json.loads(line)
        if not _is_record(record):
            raise HistoryError(f"{path}:{i} is not a valid record: {line[:200]!r}")
        records.append(record)
    return records


def _is_record(value: Any) -> bool:
    return type(value) is dict and "t" in value and "p" in value and "op" in value and "ph" in value


def _ended(waiting: list[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """Remove and return the open calls of one ``k`` that *record* ends."""
    if len(waiting) == 1:
        return [waiting.pop()]
    for name in ("n", "id"):
        if name in record:
            for i, first in enumerate(waiting):
                if first.get(name) == record[name]:
                    return [waiting.pop(i)]
            return []
    # The record names no item, so it ends all of them.
    ended = waiting.copy()
    waiting.clear()
    return ended


def _operation(record: dict[str, Any], t: int, end: int | None, ph: str) -> Operation:
    op, p, id = record["op"], record["p"], record.get("id")
    for name in _FRAME:
        record.pop(name, None)
    return Operation(op, p, t, end, ph, id, record)
