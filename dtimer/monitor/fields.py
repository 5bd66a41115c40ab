"""The fields of records for programs, such as the JSON of the command line."""

from __future__ import annotations

import dataclasses
from typing import Any

from dtimer.model.records import DeadLetter, Record, Stats


def record_fields(record: Record) -> dict[str, Any]:
    """Return the fields of a record."""
    return dataclasses.asdict(record) | {"state": record.state.value}


def letter_fields(letter: DeadLetter) -> dict[str, Any]:
    """Return the fields of a dead letter, with its bytes only if they are not a payload."""
    fields = dataclasses.asdict(letter)
    raw = fields.pop("raw")
    is_payload = letter.event is not None or letter.sealed is not None
    return fields if is_payload else fields | {"raw": raw.decode(errors="replace")}


def stats_fields(stats: Stats) -> dict[str, Any]:
    """Return the numbers of a namespace, with percentiles instead of the histogram."""
    fields = dataclasses.asdict(stats)
    del fields["lateness"]
    return fields | {"lateness_ms": {"p50": stats.late(0.5), "p99": stats.late(0.99)}}
