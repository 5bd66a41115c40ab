"""The log of a node in production: on stderr, each line with its time and level."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from dtimer.cli.output import Output, escaped, moment
from dtimer.errors import HandlerError
from dtimer.log import Source

LEVELS = ("debug", "info", "warning", "error")

_log = logging.getLogger("dtimer.cli")

# The fields of the library's records (docs/logging.rst). A handler of the logger ``dtimer`` also
# gets the records of this command, and its format may name these fields.
_NO_NODE: dict[str, Any] = Source()._asdict() | {"event_ids": []}


class _Lines(logging.Formatter):
    """Formats a record for people: a line, and a traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's
        """Write the time with its offset, because logs are often read in another time zone."""
        return moment(record.created * 1000)


class _Objects(logging.Formatter):
    """Formats a record for programs: one JSON object a line, with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Write *record* as JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.name == _log.name:
            line |= getattr(record, "fields", {})
        else:
            line |= {name: getattr(record, name) for name in _NO_NODE if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


class Logged(Output):
    """An output whose notices and failures go to the log. Results still go to stdout."""

    def notice(self, *parts: str | tuple[str, str], **fields: Any) -> None:
        """Log a notice."""
        text = "".join(part if isinstance(part, str) else part[0] for part in parts)
        _log.info("%s", text, extra={**_NO_NODE, "fields": fields})

    def failure(self, error: BaseException) -> None:
        """Log an error, with the traceback of a handler's error."""
        cause = error.__cause__ if isinstance(error, HandlerError) else None
        extra = {**_NO_NODE, "fields": {"error": type(error).__name__}}
        _log.error("%s", escaped(str(error)), exc_info=cause, extra=extra)


def start(level: str, *, as_json: bool) -> Logged:
    """
    Write log records of *level* or above to stderr, including those of handlers.

    If the program has configured logging already, its configuration stays.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Objects() if as_json else _Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    return Logged(as_json=as_json)
