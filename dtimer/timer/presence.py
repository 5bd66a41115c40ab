"""The entry of a joined node in the list of nodes, and the warning that it has no listener."""

from __future__ import annotations

import json
import os
import socket

from dtimer import log as messages
from dtimer.log import Log
from dtimer.timer.weak import TimerCalls

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
    """

    def __init__(self, id: str, timer: TimerCalls, log: Log) -> None:
        self._log = log
        self._id = id
        self._about = {"id": id, "host": socket.gethostname(), "pid": os.getpid()}
        self._timer = timer
        self._warned = False
        #: Whether the node has a listener, according to its entry.
        self.listening: bool = True

    def entry(self) -> str:
        """Return the entry, as JSON."""
        more = {} if self.listening else {"listening": False}
        return json.dumps(self._about | more)

    def outdated(self) -> bool:
        """
        Check whether the node has a listener; return True if its entry says otherwise.

        Logs a warning the first time that there is none.
        """
        listening = self._timer.listens()
        if not listening and not self._warned:
            self._warned = True
            self._log.add(messages.NO_LISTENER, self._id)
        outdated = listening is not self.listening
        self.listening = listening
        return outdated
