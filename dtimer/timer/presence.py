"""What a joined node says of itself in the list of nodes, and that it listens to nothing."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable

log = logging.getLogger("dtimer")

#: Seconds after which a node that listens to nothing says so: a program that joins first and
#: registers its listeners then is done by that time.
PATIENCE = 1.0


class Presence:
    """
    The entry of one node in the list of nodes.

    Args:
        id: The node's.
        listens: Tells whether there is a listener that takes events.
    """

    def __init__(self, id: str, listens: Callable[[], bool]) -> None:
        self._id = id
        self._about = {"id": id, "host": socket.gethostname(), "pid": os.getpid()}
        self._listens = listens
        self._warned = False
        #: What the entry says: whether the node listens.
        self.listening = True

    def entry(self) -> str:
        """Return the entry, as JSON."""
        more = {} if self.listening else {"listening": False}
        return json.dumps(self._about | more)

    def outdated(self) -> bool:
        """
        Look whether the node listens; return True if its entry says otherwise.

        The first time that it does not, a warning is logged.
        """
        listening = self._listens()
        if not listening and not self._warned:
            self._warned = True
            log.warning(
                "the node %r has joined but has no listener of 'event', so it receives none:"
                " register one with @timer.on('event')",
                self._id,
            )
        outdated = listening is not self.listening
        self.listening = listening
        return outdated
