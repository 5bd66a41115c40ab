"""
Write histories by hand, for the tests of the checker.

`chaos.history` explains the fields of the records: ``p``, ``op``, ``ph``, ``k`` and the others.

Times are in ms from the beginning of the history. The server's clock is right unless a run is given
other times. A claim is made one millisecond before its handler begins.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from chaos.checker import check
from chaos.verdict import Verdict

#: The monotonic clock in ns, and the server's clock in µs, at the beginning of a history.
MONO, SERVER = 5_000_000_000_000, 1_800_000_000_000_000

LEASE, AHEAD = 600, 20

#: A poster, two nodes, and the runner: the process that runs the soak and injects the faults.
POSTER, NODE, OTHER, RUNNER = "poster.10", "node-1.11", "node-2.12", "runner.9"


def server_us(at: float) -> int:
    """Return the server's time *at* ms after the beginning of the history."""
    return SERVER + round(at * 1000)


class Case:
    """
    A history to which a test adds records in any order. `check` writes the files.

    Args:
        folder: The folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, list[tuple[float, int, dict[str, Any]]]] = defaultdict(list)
        self._order = itertools.count()
        self._calls = itertools.count(1)
        self._end: dict[str, Any] = {"pending": [], "dead": [], "sound": True}
        self._over = 0.0

    def say(self, p: str, at: float, op: str, ph: str = "ok", **fields: Any) -> None:
        record = {"t": MONO + round(at * 1e6), "p": p, "op": op, "ph": ph, **fields}
        self._lines[p].append((at, next(self._order), record))
        self._over = max(self._over, at)

    def call(
        self,
        p: str,
        op: str,
        begin: float,
        end: float | None,
        ph: str = "ok",
        *,
        said: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Add a call; if *end* is None, the call never ended."""
        k = next(self._calls)
        self.say(p, begin, op, "inv", k=k, **fields)
        if end is not None:
            self.say(p, end, op, ph, k=k, **(said or {}))

    def post(
        self, id: str, n: int, at: float = 0, *, took: float | None = 2, ph: str = "ok", **more: Any
    ) -> None:
        """
        Add a post, which by default is due at once and retried three times.

        With ``stored``, the record of its end has this field: False if an existing event was kept.
        """
        said = {"stored": more.pop("stored")} if "stored" in more else None
        fields: dict[str, Any] = {
            "delay_us": 0,
            "max_retries": 3,
            "crc": n,
            "if_exists": "replace",
        } | more
        end = None if took is None else at + took
        self.call(POSTER, "post", at, end, ph, said=said, id=id, n=n, **fields)

    def run(
        self,
        id: str,
        n: int | None,
        at: float,
        *,
        took: float | None = 5,
        ph: str = "ok",
        p: str = NODE,
        **more: Any,
    ) -> int:
        """Add a run, and return its token."""
        claimed = server_us(at - 1)
        fields: dict[str, Any] = {"tok": claimed, "att": 1, "due": claimed, "srv": claimed}
        fields |= {"lease_us": LEASE * 1000, "crc": n}
        fields |= more
        self.call(p, "run", at, None if took is None else at + took, ph, id=id, n=n, **fields)
        return int(fields["tok"])

    def ahead(self, id: str, n: int, at: float, *, due: float, early: float, **more: Any) -> int:
        """Add a run of an event that was claimed *early* ms before it was *due*."""
        claimed = server_us(due - early)
        fields = {"due": server_us(due), "srv": claimed, "tok": claimed, "ahead_us": AHEAD * 1000}
        return self.run(id, n, at, **fields | more)

    def claim(self, id: str, n: int, at: float, *, lease: float = 6_000, **more: Any) -> int:
        """Add a claim of a node that records its claims, and return its token."""
        claimed = server_us(at)
        fields: dict[str, Any] = {"p": NODE, "tok": claimed, "att": 1, "due": claimed}
        fields |= {"srv": claimed, "lease_us": round(lease * 1000), "by": "incarnation-1"}
        fields |= more
        self.say(fields.pop("p"), at, "claim", id=id, n=n, **fields)
        return int(fields["tok"])

    def leave(self, begin: float, end: float | None, p: str = NODE, **more: Any) -> None:
        """Add a leave, by default without a time-out."""
        self.call(p, "leave", begin, end, **{"timeout": None} | more)

    def holder(self, op: str, at: float, run: tuple[str, int, int], **more: Any) -> None:
        """
        Add a call with which the holder of an event settles or extends its lease.

        Args:
            op: The kind of the call.
            at: When it begins.
            run: The event: its id, the number ``n`` of its post, and the token of its claim.
            more: Other fields, and ``accepted``, ``ph``, ``took`` and ``p`` if not the usual ones.
        """
        fields: dict[str, Any] = {"p": NODE, "accepted": True, "ph": "ok", "took": 2} | more
        p, accepted, ph, took = (fields.pop(name) for name in ("p", "accepted", "ph", "took"))
        id, n, tok = run
        said = {} if accepted is None else {"accepted": accepted}
        end = None if took is None else at + took
        self.call(p, op, at, end, ph, said=said, id=id, n=n, tok=tok, **fields)

    def cancel(self, id: str, at: float, outcome: str | None = "CANCELLED", **more: Any) -> None:
        """Add a cancel; if *outcome* is None, its outcome is unknown."""
        fields: dict[str, Any] = {"took": 2, "p": POSTER} | more
        end = None if fields["took"] is None else at + fields["took"]
        ph = "info" if outcome is None else "ok"
        said = {"outcome": outcome} if outcome else {}
        self.call(fields["p"], "cancel", at, end, ph, said=said, id=id)

    def update(self, id: str, n: int, at: float, updated: bool = True, *, crc: int) -> None:
        """Add an update of the event that the post *n* has stored."""
        self.call(POSTER, "update", at, at + 2, said={"updated": updated}, id=id, n=n, crc=crc)

    def drop(self, id: str, at: float) -> None:
        """Add a drop of a dead letter."""
        self.call(POSTER, "drop", at, at + 2, said={"dropped": True}, id=id)

    def fault(self, name: str, begin: float, end: float, target: str = "srv") -> None:
        """Add a fault, from its beginning to its end."""
        for at, phase in ((begin, "begin"), (end, "end")):
            self.say(RUNNER, at, "fault", name=name, target=target, phase=phase)

    def kill(self, p: str, at: float) -> None:
        """Add the note that a process was killed."""
        self.say(RUNNER, at, "kill", pid=int(p.rpartition(".")[2]))

    def ends(self, **final: Any) -> None:
        """Change the final record, which by default has no events left."""
        self._end |= final

    def write(self, *, final: bool = True) -> Path:
        """Write the history, with a file for each process."""
        # One request for the server's time. The request takes 0.1 ms, so the checker can tell to
        # within 0.1 ms when a claim was made on the monotonic clock.
        said = {"srv": server_us(-5.05)}
        self.call(RUNNER, "clock", -5.1, -5, said=said)
        if final:
            self.say(RUNNER, self._over + 60_000, "final", **self._end)
        for p, lines in self._lines.items():
            lines.sort(key=lambda line: line[:2])
            text = "".join(json.dumps(record) + "\n" for _, _, record in lines)
            (self._folder / f"{p}.jsonl").write_text(text)
        return self._folder

    def check(self, **options: Any) -> Verdict:
        """Write the history, and return the checker's verdict."""
        return check(self.write(final=not options.get("partial", False)), **options)


def accepted(case: Case, **options: Any) -> Verdict:
    """Assert that the checker finds no violation, and return the verdict."""
    verdict = case.check(**options)
    assert {} == verdict.broken, f"\n{verdict}"
    return verdict


def caught(case: Case, invariant: str, words: str = "", **options: Any) -> Verdict:
    """Assert that the checker finds *invariant* broken, with *words* in its reason."""
    verdict = case.check(**options)
    texts = [str(v) for v in verdict.violations if v.invariant == invariant]
    assert any(words in text for text in texts), f"no {invariant} {words!r} in:\n{verdict}"
    return verdict
