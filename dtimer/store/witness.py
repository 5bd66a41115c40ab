"""
The witness: what Redis has acknowledged to this process, held against what it says now.

Redis loses acknowledged writes from a moment on: a file that was cut short, a replica that
had not heard of them yet, a FLUSHALL. So whoever knows of one write that is gone knows that
all after it are. What each knows for certain is what itself was told; it costs no command:

* a node, when it was last heard of: only its own turns write that, and it is struck off only
  after long silence, which is counted;
* whoever posts, how many events were posted in all: it never goes down;
* everybody, under what name the namespace was made.

Nothing here compares a clock with another, or with itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from dtimer.errors import StateRollback
from dtimer.model.claims import Turn

# Beyond this the scripts begin anew with tokens (lua/turn.lua): a foreign hand wrote them.
_MOST_TOKEN = 9_000_000_000_000_000


class Known(NamedTuple):
    """
    What was known when a call was sent: no less may be found by it.

    ``era`` counts the rollbacks that were noticed: what was known before one is void.
    ``heard`` is when this node was last heard of, None where that is not known.
    ``suspect`` says that less was found already, by a call that could not tell more, and
    ``missing`` that the node was not registered any more. Silent ones are struck off, and
    ``struck`` is how many were until this was looked at last.
    """

    era: int = 0
    born: str = ""
    token: int = 0
    posted: int = 0
    heard: int | None = None
    suspect: bool = False
    missing: bool = False
    struck: int | None = None


class Standing(NamedTuple):
    """How a namespace stood when it was opened. A total is None where that is no number."""

    now: int
    born: str
    token: int
    posted: int | None
    struck: int | None


class Witness:
    """Keeps what is known, and tells of each rollback once. For any thread."""

    def __init__(self) -> None:
        #: Called with the error, on the thread that noticed.
        self.tell: Callable[[StateRollback], object] = id
        self._lock = threading.Lock()
        # The total up to which turns have found everything there.
        self._counted = 0
        #: What is known now; to be read before a call is sent.
        self.known = Known()

    def after_fork(self) -> None:
        """Fresh locks; what was known still holds, but for the node, which is the parent's."""
        self._lock = threading.Lock()
        self.known = self.known._replace(heard=None)

    def forget(self) -> None:
        """Know nothing any more: whatever is met next is right."""
        with self._lock:
            self._void()

    def _void(self) -> None:
        self.known = Known(era=self.known.era + 1)
        self._counted = 0

    @property
    def curious(self) -> bool:
        """True when more was posted from here than any turn was asked about."""
        return self.known.posted > self._counted

    def registering(self) -> None:
        """The node is about to register: when it was heard of will change."""
        with self._lock:
            self.known = self.known._replace(heard=None)

    def opened(self, before: Known, found: Standing) -> None:
        """Judge how the namespace stands, which is to be no less than was known *before*."""
        with self._lock:
            if before.era != self.known.era:
                # It may have been looked at before what somebody else has noticed since.
                return
            error = self._judge(before, found)
            token, posted = found.token, found.posted or 0
            self.known = self.known._replace(
                born=found.born,
                token=max(self.known.token, token if token <= _MOST_TOKEN else 0),
                posted=max(self.known.posted, posted),
                missing=False,
                struck=found.struck,
            )
        if error:
            self.tell(error)

    def _judge(self, before: Known, found: Standing) -> StateRollback | None:
        wiped = bool(before.born) and found.born != before.born
        posted = before.posted if found.posted is None else found.posted
        # Nobody was struck off since, and so not this node: it is forgotten.
        forgotten = before.missing and found.struck is not None and found.struck == before.struck
        less = found.token < before.token or posted < before.posted
        if not (wiped or less or forgotten or before.suspect):
            return None
        # Since when is not known: others may have counted on from where it went back to.
        return self._gone_back(None, found.now, wiped=wiped)

    def posted(self, before: Known, stored: int, total: int) -> bool:
        """
        Judge the total that a post of *stored* events has counted up.

        Returns:
            False when it is less than it has to be: the namespace is to be opened anew, or
            the next turn to be waited for, which can tell more.
        """
        with self._lock:
            if before.era != self.known.era:
                return True
            if total - stored < before.posted:
                self.known = self.known._replace(suspect=True)
                return False
            if total > self.known.posted:
                self.known = self.known._replace(posted=total)
            return True

    def turned(self, asked: Known, turn: Turn) -> None:
        """Judge the answer to a turn, before which so much was known."""
        error = None
        with self._lock:
            if asked.era != self.known.era:
                self.known = self.known._replace(heard=None)
                return
            if asked.heard is not None:
                less = turn.posted is not None and turn.posted < asked.posted
                if turn.before is None and (less or asked.suspect):
                    error = self._gone_back(asked.heard, turn.now_us, wiped=False)
                elif turn.before and turn.before < asked.heard:
                    error = self._gone_back(turn.before, turn.now_us, wiped=False)
                # A node that is not known at all registers, and so opens the namespace.
                elif turn.posted is not None and not less:
                    self._counted = max(self._counted, asked.posted)
            missing = asked.heard is not None and turn.before == 0 and not error
            self.known = self.known._replace(heard=turn.heard, missing=missing)
            if self.known.token < turn.token <= _MOST_TOKEN:
                self.known = self.known._replace(token=turn.token)
        if error:
            self.tell(error)

    def _gone_back(self, since: int | None, until: int, *, wiped: bool) -> StateRollback:
        self._void()
        ms = None if since is None else since / 1000
        return StateRollback(ms, until / 1000, wiped=wiped)
