"""
What is said, and where: results on stdout, everything else on stderr.

A line goes out in one write, so that those of several threads do not mix. Colours are
for terminals; with ``--json`` every line, on either stream, is one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from dtimer.errors import HandlerError

#: A text, or a text and the style that rich is to give it.
Part = str | tuple[str, str]


def visible(text: str) -> str:
    """Escape what a terminal would obey, or print as nothing, or not be able to print."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def payload(event: dict[str, Any] | None) -> str:
    """Write a payload on one line, for people."""
    if event is None:
        return "(not a payload)"
    return visible(json.dumps(event, ensure_ascii=False))


def moment(ms: float) -> str:
    """Write a moment as local time, to the millisecond."""
    at = datetime.fromtimestamp(ms / 1000, tz=UTC).astimezone()
    return at.isoformat(" ", "milliseconds")[:23]


def brief(ms: float) -> str:
    """Write a moment in 16 characters: the time if it is today, else the day and the minute."""
    text = moment(ms)
    today = moment(time.time() * 1000)[:10]
    return text[11:] if text.startswith(today) else text[:16]


class Output:
    """The two streams, as people or as programs read them."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._lock = threading.Lock()
        self._consoles: dict[int, Any] = {}

    def result(self, *parts: Part, **fields: Any) -> None:
        """Say on stdout, in *parts* for people, or in *fields* for programs."""
        self._say(sys.stdout, parts, fields)

    def notice(self, *parts: Part, **fields: Any) -> None:
        """Say on stderr what happens on the way."""
        text = "".join(part if isinstance(part, str) else part[0] for part in parts)
        self._say(sys.stderr, parts, {"notice": text} | fields)

    def failure(self, error: BaseException) -> None:
        """Say on stderr what went wrong; of a handler also where."""
        fields: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
        parts: list[Part] = [("Error: ", "bold red"), visible(str(error))]
        if isinstance(error, HandlerError):
            cause = error.__cause__
            told = "".join(traceback.format_exception(cause)) if cause else ""
            fields["cause"] = type(cause).__name__
            fields["ids"] = [event.id for event in error.events]
            fields["traceback"] = told
            lines = [visible(line) for line in told.rstrip().split("\n")]
            parts.append(("\n" + "\n".join(lines), "dim"))
        self._say(sys.stderr, parts, fields)

    def mute(self) -> None:
        """Say nothing more on stdout, whose reader is gone: not even what is left unsaid."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

    def console(self, stream: TextIO) -> Any:
        """Return rich's console for *stream*, which is made when it is first wanted."""
        console = self._consoles.get(id(stream))
        if console is None:
            from rich.console import Console

            console = Console(file=stream, highlight=False, markup=False, emoji=False)
            self._consoles[id(stream)] = console
        return console

    def _say(self, stream: TextIO, parts: Any, fields: dict[str, Any]) -> None:
        with self._lock:
            line = json.dumps(fields) if self.as_json else self._line(stream, parts)
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
