"""
The entry of a joined node in the list of nodes, and the warning that it has no listener.

The entry is a JSON object. A value that says that all is well is left out.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from dtimer import log as messages
from dtimer.log import Log
from dtimer.model.records import Health
from dtimer.timer.weak import TimerCalls

# The package itself cannot be imported here: it imports the timer.
_VERSION = sys.modules["dtimer"].__version__

#: Seconds before a node without a listener warns, so that a program may join first and register
#: its listeners afterwards.
PATIENCE = 1.0


class Presence:
    """
    Builds the entry of one node, and watches whether it has a listener.

    Args:
        id: The node's id.
        timer: Knows whether there is a listener that takes events.
        log: The node's log.
        threads: How many handler threads the node may have.
    """

    def __init__(self, id: str, timer: TimerCalls, log: Log, threads: int) -> None:
        self._log = log
        self._id = id
        self._about = {"id": id, "host": socket.gethostname(), "pid": os.getpid()}
        self._about |= {"version": _VERSION, "threads": threads}
        # The last known state of the threads of the node.
        self._state: dict[str, Any] = {}
        #: The µs that the last report took; 0 before the first.
        self.rtt: int = 0
        self._timer = timer
        self._warned = False
        #: Whether the node has a listener, according to its entry.
        self.listening: bool = True

    def entry(self) -> str:
        """Return the entry, as JSON."""
        more = self._state | ({} if self.listening else {"listening": False})
        measured = {"rss": _resident_bytes(), "rtt": self.rtt}
        more |= {name: value for name, value in measured.items() if value}
        return json.dumps(self._about | more)

    def outdated(self, health: Health) -> bool:
        """
        Compare the entry with the state of the node; return True if it says something else.

        Logs a warning the first time that the node has no listener.
        """
        state = {"used": health.handlers, "deaf": health.deaf, "stuck": health.stuck}
        state |= {"restarts": health.restarts}
        state = {name: value for name, value in state.items() if value}
        changed, self._state = state != self._state, state
        listening = self._timer.listens()
        if not listening and not self._warned:
            self._warned = True
            self._log.add(messages.NO_LISTENER, self._id)
        outdated = listening is not self.listening
        self.listening = listening
        return outdated or changed


def _resident_bytes() -> int:
    """Return the resident memory of this process; 0 if the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
