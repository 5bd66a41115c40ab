"""
A node of the demo: a process that joins, reports what its handler does, and leaves.

Run as ``python -m dtimer.cli.demo.node URL NAMESPACE ID LEASE``. The node writes its reports to
standard output, one JSON list on a line. It leaves at the end of standard input, so that it never
outlives its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from dtimer.model.event import Event
from dtimer.timer import DTimer

#: The key in the payload of the event during which the parent kills the node.
FATAL = "fatal"


class Reports:
    """
    The pipe to the parent.

    Each line is one write of less than 512 bytes, which POSIX makes atomic for pipes. So a SIGKILL
    comes before it or after it, but never truncates it.
    """

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        # Other output of this process must not mix with the reports.
        os.dup2(2, 1)

    def __call__(self, *report: object) -> None:
        """Write one report."""
        os.write(self._pipe, (json.dumps(report) + "\n").encode())


def main(url: str, ns: str, id: str, lease: str) -> None:
    """Run a node until standard input ends."""
    report = Reports()
    over = threading.Event()
    timer = DTimer(id, url, ns=ns, lease=int(lease))

    @timer.on("event")
    def handle(events: list[Event]) -> None:
        for event in events:
            fatal = FATAL in event and event.attempt == 1
            report("start", event.id, event.attempt, event.lateness_ms, fatal)
            if fatal:
                # The parent kills this process now. Until then heartbeats renew the lease.
                over.wait()
            report("done", event.id, event.attempt)

    @timer.on("error")
    def failed(error: Exception) -> None:
        report("error", str(error)[:70])

    timer.join()
    report("ready", os.getpid())
    sys.stdin.read()
    over.set()
    timer.leave(1_000)
    report("left")


if __name__ == "__main__":
    main(*sys.argv[1:])
