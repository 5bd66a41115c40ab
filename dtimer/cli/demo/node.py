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

#: A key in a payload. When the node reports an event with this key, the parent kills the node.
FATAL = "fatal"


def main(url: str, ns: str, id: str, lease: str) -> None:
    """Run a node until standard input ends."""
    pipe = os.dup(1)
    # Other output of this process must not mix with the reports.
    os.dup2(2, 1)
    input_ended = threading.Event()
    timer = DTimer(id, url, ns=ns, lease=int(lease))

    def report(*words: object) -> None:
        # One write of less than 512 bytes, which POSIX makes atomic for pipes: a SIGKILL comes
        # before it or after it, and never truncates a line.
        os.write(pipe, (json.dumps(words) + "\n").encode())

    @timer.on("event")
    def handle(events: list[Event]) -> None:
        for event in events:
            report("start", event.id, event.attempt, event.lateness_ms)
            if FATAL in event and event.attempt == 1:
                report("fatal", event.id)
                # The parent kills this process now. Until then heartbeats renew the lease.
                input_ended.wait()
            report("done", event.id)

    @timer.on("error")
    def failed(error: Exception) -> None:
        report("error", str(error)[:70])

    timer.join()
    report("ready", os.getpid())
    sys.stdin.read()
    input_ended.set()
    timer.leave(1_000)
    report("left")


if __name__ == "__main__":
    main(*sys.argv[1:])
