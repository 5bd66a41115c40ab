"""
The output of a command: results on stdout, everything else on stderr.

Each line is written by one call, so lines of several threads do not mix. Colours are used on
terminals only. With ``--json`` every line, on both streams, is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from datetime import datetime
from typing import Any, TextIO

from dtimer.cli.exit_codes import ExitCode
from dtimer.epoch import to_datetime
from dtimer.errors import HandlerError
from dtimer.model.times import format_duration

#: A text, or a text and its style for rich.
Part = str | tuple[str, str]


def escaped(text: str) -> str:
    """Escape characters that a terminal would interpret, or could not show."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def payload(value: dict[str, Any] | None, sealed: str | None = None) -> str:
    """Format a payload on one line, for people, or describe a payload that cannot be opened."""
    if sealed is not None:
        return f"<{sealed}>"
    if value is None:
        return "(not a payload)"
    # A codec of the user may return values that JSON does not have.
    return escaped(json.dumps(value, ensure_ascii=False, default=repr))


def moment(ms: float, timespec: str = "milliseconds") -> str:
    """Format a moment as local time with its offset, in a form that ``--at`` accepts."""
    return _local(ms).isoformat(" ", timespec)


def clock(ms: float) -> str:
    """Format the time of day of a moment, with its offset."""
    return _short(moment(ms)[11:])


def brief(ms: float) -> str:
    """Format a moment in 22 characters: the time if it is today, else the date and the minute."""
    today = _local(time.time() * 1000).date() == _local(ms).date()
    return _short(moment(ms, "seconds")[11:] if today else moment(ms, "minutes"))


def _local(ms: float) -> datetime:
    moment = to_datetime(ms)
    # The offset may lead beyond the last datetime, or before the first.
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return moment.astimezone()
    return moment


def _short(text: str) -> str:
    """Shorten an offset of whole hours to two digits, as ISO 8601 allows: +01, and Z for zero."""
    if text.endswith("+00:00"):
        return text[:-6] + "Z"
    return text.removesuffix(":00") if text[-6] in "+-" else text


def lateness(ms: float) -> str:
    """Format a lateness: 0.64 ms, 12 ms, 1.5 s, 1m7s."""
    if ms < 10_000:
        return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1000:.3g} s"
    return format_duration(ms)


def report_unwritable(error: OSError, output: Output) -> int:
    """
    Report in one line that the output could not be written, and return the exit code.

    A closed pipe, as in ``dtimer upcoming | head``, is not reported. Its exit code is 1.
    """
    # Python would flush the buffer at exit, fail again, and print a second error.
    with contextlib.suppress(OSError, ValueError):
        output.mute()
    if isinstance(error, BrokenPipeError):
        return ExitCode.NEGATIVE
    why = error.strerror or str(error)
    place = "the output" if error.filename is None else repr(error.filename)
    try:
        output.failure(OSError(f"cannot write {place}: {why}"))
    except OSError:
        # Standard error may be on the same full disk. Python flushes its buffer at exit too,
        # and would then exit with 120.
        with contextlib.suppress(OSError, ValueError):
            output.mute(sys.stderr)
    return ExitCode.OUTPUT


class Output:
    """Writes to stdout and stderr, as text for people or as JSON for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._lock = threading.Lock()
        self._consoles: dict[int, Any] = {}

    def result(self, *parts: Part, **fields: Any) -> None:
        """Write a result to stdout: *parts* for people, or *fields* for programs."""
        self._say(sys.stdout, parts, fields)

    def notice(self, *parts: Part, **fields: Any) -> None:
        """Write a notice to stderr."""
        text = "".join(part if isinstance(part, str) else part[0] for part in parts)
        self._say(sys.stderr, parts, {"notice": text} | fields)

    def missing(self, what: str, id: str) -> int:
        """Write that there is no *what* of this id, and return the exit code for that."""
        self.notice(f"no such {what}: {escaped(id)}", id=id)
        return ExitCode.NEGATIVE

    def failure(self, error: BaseException) -> None:
        """Write an error to stderr, with the traceback of a handler's error."""
        fields: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
        parts: list[Part] = [("Error: ", "bold red"), escaped(str(error))]
        if isinstance(error, HandlerError):
            cause = error.__cause__
            trace = "".join(traceback.format_exception(cause)) if cause else ""
            fields["cause"] = type(cause).__name__
            fields["ids"] = [event.id for event in error.events]
            fields["traceback"] = trace
            lines = [escaped(line) for line in trace.rstrip().split("\n")]
            parts.append(("\n" + "\n".join(lines), "dim"))
        self._say(sys.stderr, parts, fields)

    def mute(self, stream: TextIO | None = None) -> None:
        """Discard all further and all buffered output to *stream*, by default stdout."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, (stream or sys.stdout).fileno())
        os.close(nowhere)

    def console(self, stream: TextIO) -> Any:
        """Return rich's console for *stream*. It is created on the first call."""
        console = self._consoles.get(id(stream))
        if console is None:
            from rich.console import Console

            console = Console(file=stream, highlight=False, markup=False, emoji=False)
            self._consoles[id(stream)] = console
        return console

    def _say(self, stream: TextIO, parts: Any, fields: dict[str, Any]) -> None:
        with self._lock:
            line = json.dumps(fields, default=repr) if self.as_json else self._line(stream, parts)
            stream.write(line + "\n")
            stream.flush()

    def _line(self, stream: TextIO, parts: Any) -> str:
        if not stream.isatty():
            return "".join(part if isinstance(part, str) else part[0] for part in parts)
        from rich.text import Text

        console = self.console(stream)
        with console.capture() as captured:
            console.print(Text.assemble(*parts), soft_wrap=True, end="")
        return str(captured.get())
