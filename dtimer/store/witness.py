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

from collections.abc import Callable
from typing import NamedTuple

from dtimer.errors import StateRollback
from dtimer.model.claims import Turn

# Beyond this the scripts begin anew with tokens (lua/turn.lua): a foreign hand wrote them.
_MOST_TOKEN = 9_000_000_000_000_000


class Era:
    """
    The time between two rollbacks, and what is known in it.

    Without a lock, because a signal handler that interrupts a note may post, or leave, which waits
    for threads that take notes, too. Each field is stored by itself, so a note never undoes one of
    another field, and what is noted late of an era that has ended is noted where nothing looks.
    """

    __slots__ = (
        "born",
        "counted",
        "heard",
        "missing",
        "posted",
        "struck",
        "suspect",
        "token",
        "untold",
    )

    def __init__(self) -> None:
        self.born = ""
        self.token = 0
        self.posted = 0
        self.heard: int | None = None
        self.suspect = False
        self.missing = False
        self.struck: int | None = None
        # The total up to which turns have found everything there.
        self.counted = 0
        # Has one item until a rollback is noticed: whoever removes that tells of it.
        self.untold = [True]


class Known(NamedTuple):
    """
    What was known when a call was sent: no less may be found by it.

    ``era`` ends with each rollback that is noticed: what was known before one is void.
    ``heard`` is when this node was last heard of, None where that is not known.
    ``suspect`` says that less was found already, by a call that could not tell more, and
    ``missing`` that the node was not registered any more. Silent ones are struck off, and
    ``struck`` is how many were until this was looked at last.
    """

    era: Era
    born: str
    token: int
    posted: int
    heard: int | None
    suspect: bool
    missing: bool
    struck: int | None


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
        self._era = Era()

    @property
    def known(self) -> Known:
        """What is known now; to be read before a call is sent."""
        e = self._era
        return Known(e, e.born, e.token, e.posted, e.heard, e.suspect, e.missing, e.struck)

    def after_fork(self) -> None:
        """What was known still holds in a child, but for the node, which is the parent's."""
        self._era.heard = None

    def forget(self) -> None:
        """Know nothing any more: whatever is met next is right."""
        self._era = Era()

    @property
    def curious(self) -> bool:
        """True when more was posted from here than any turn was asked about."""
        return self._era.posted > self._era.counted

    def registering(self) -> None:
        """The node is about to register: when it was heard of will change."""
        self._era.heard = None

    def opened(self, before: Known, found: Standing) -> None:
        """Judge how the namespace stands, which is to be no less than was known *before*."""
        if before.era is not self._era:
            # It may have been looked at before what somebody else has noticed since.
            return
        error = self._judge(before, found)
        token, era = found.token, self._era
        era.born = found.born
        if era.token < token <= _MOST_TOKEN:
            era.token = token
        era.posted = max(era.posted, found.posted or 0)
        era.missing = False
        era.struck = found.struck
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
        return self._gone_back(before.era, None, found.now, wiped=wiped)

    @property
    def era(self) -> Era:
        """The present era; a post reads it, and its total, before it is sent."""
        return self._era

    def posted(self, era: Era, before: int, stored: int, total: int) -> bool:
        """
        Judge the total that a post of *stored* events has counted up.

        Args:
            era: The era in which the post was sent.
            before: The total of that era when the post was sent.
            stored: The number of events that the post has stored.
            total: The total in the reply.

        Returns:
            False when it is less than it has to be: the namespace is to be opened anew, or
            the next turn to be waited for, which can tell more.
        """
        if era is not self._era:
            return True
        if total - stored < before:
            era.suspect = True
            return False
        era.posted = max(era.posted, total)
        return True

    def turned(self, asked: Known, turn: Turn) -> None:
        """Judge the answer to a turn, before which so much was known."""
        if asked.era is not self._era:
            self._era.heard = None
            return
        error = None
        if asked.heard is not None:
            less = turn.posted is not None and turn.posted < asked.posted
            if turn.before is None and (less or asked.suspect):
                error = self._gone_back(asked.era, asked.heard, turn.now_us, wiped=False)
            elif turn.before and turn.before < asked.heard:
                error = self._gone_back(asked.era, turn.before, turn.now_us, wiped=False)
            # A node that is not known at all registers, and so opens the namespace.
            elif turn.posted is not None and not less:
                asked.era.counted = max(asked.era.counted, asked.posted)
        era = self._era
        era.missing = asked.heard is not None and turn.before == 0 and not error
        era.heard = turn.heard
        if era.token < turn.token <= _MOST_TOKEN:
            era.token = turn.token
        if error:
            self.tell(error)

    def _gone_back(
        self, ended: Era, since: int | None, until: int, *, wiped: bool
    ) -> StateRollback | None:
        try:
            ended.untold.pop()
        except IndexError:
            # Another call has noticed it, and tells.
            return None
        self._era = Era()
        ms = None if since is None else since / 1000
        return StateRollback(ms, until / 1000, wiped=wiped)
