"""
Detect rollbacks: compare the replies of Redis with the writes that it acknowledged before.

A rollback loses every acknowledged write after some moment. The causes are a truncated file, a
failover to a replica that had not received the writes, and FLUSHALL. So if one write is missing,
all later ones are missing, too. The detector needs no commands of its own. It remembers high-water
marks from replies that the process receives anyway:

* For a node: the time of its last claim, as the server recorded it. Only the node's own claims
  change that time. The server removes a node only after a long silence, and counts the removals.
* For a process that posts: the total number of posted events, which never decreases.
* For every process: the random mark that the namespace got when it was created.

The detector compares stored values only, never the readings of clocks: a clock that is set back
must not look like a rollback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dtimer.errors import StateRollback
from dtimer.model.claims import ClaimReply

# The scripts start over with tokens that are greater than this (lua/claim.lua), because only a
# foreign writer can have stored them.
_MOST_TOKEN = 9_000_000_000_000_000


class Era:
    """
    The high-water marks between two rollbacks.

    Updates take no lock. A signal handler can interrupt one and then post, or leave, which waits
    for other threads that make updates. Each field is assigned separately, so an update of one
    field never undoes another. A late update of an ended era has no effect.
    """

    __slots__ = (
        "born",
        "checked",
        "heard",
        "missing",
        "posted",
        "removed",
        "suspect",
        "token",
        "unreported",
    )

    def __init__(self) -> None:
        self.born: str = ""
        self.token: int = 0
        self.posted: int = 0
        self.heard: int | None = None
        self.suspect: bool = False
        self.missing: bool = False
        self.removed: int | None = None
        # Up to this total number of posts, a claim has found that none is lost.
        self.checked: int = 0
        # Holds one item until a rollback is detected. The thread that removes it reports the
        # rollback, so it is reported once.
        self.unreported: list[bool] = [True]


class Watermarks(NamedTuple):
    """
    The high-water marks when a call was sent: its reply must not be below them.

    ``era`` ends when a rollback is detected, which makes the marks of the era invalid. ``born`` is
    the random mark of the namespace, and ``posted`` the total number of posts. ``heard`` is the
    time of this node's last claim, by the server's clock; None if it is not known. ``suspect`` is
    true after a post whose total was too low: a later call finds out since when. ``missing`` is
    true if the server no longer knows this node. ``removed`` is how many silent nodes the server
    had removed when the namespace was last opened.
    """

    era: Era
    born: str
    token: int
    posted: int
    heard: int | None
    suspect: bool
    missing: bool
    removed: int | None


class NamespaceState(NamedTuple):
    """The state of a namespace when it was opened. A total that is not a number is None."""

    now: int
    born: str
    token: int
    posted: int | None
    removed: int | None


class RollbackDetector:
    """Keeps the high-water marks, and reports each rollback once. Any thread may use it."""

    def __init__(self) -> None:
        #: Called with the error, on the thread that detected the rollback. The default, the
        #: built-in function `id`, has no effect.
        self.on_rollback: Callable[[StateRollback], object] = id
        self._era = Era()

    @property
    def known(self) -> Watermarks:
        """The current high-water marks. Read them before sending the call that they check."""
        e = self._era
        return Watermarks(e, e.born, e.token, e.posted, e.heard, e.suspect, e.missing, e.removed)

    def after_fork(self) -> None:
        """Forget, in a forked child, the node, which belongs to the parent; keep other marks."""
        self._era.heard = None

    def forget(self) -> None:
        """Forget all marks, and accept any state of the namespace next."""
        self._era = Era()

    @property
    def wants_total(self) -> bool:
        """True if this process has posted events since a claim last checked the total of posts."""
        return self._era.posted > self._era.checked

    def registering(self) -> None:
        """Forget the time of the node's last claim, which registering changes."""
        self._era.heard = None

    def opened(self, before: Watermarks, found: NamespaceState) -> None:
        """Check the state of a namespace that was opened against the marks from *before*."""
        if before.era is not self._era:
            # Another call has detected a rollback since. This reply may be older than that.
            return
        error = self._judge(before, found)
        token, era = found.token, self._era
        era.born = found.born
        if era.token < token <= _MOST_TOKEN:
            era.token = token
        era.posted = max(era.posted, found.posted or 0)
        era.missing = False
        era.removed = found.removed
        if error:
            self.on_rollback(error)

    def _judge(self, before: Watermarks, found: NamespaceState) -> StateRollback | None:
        wiped = bool(before.born) and found.born != before.born
        posted = before.posted if found.posted is None else found.posted
        # The server does not know this node any more, and it has removed no silent node since. So
        # a rollback has removed this node.
        forgotten = before.missing and found.removed is not None and found.removed == before.removed
        less = found.token < before.token or posted < before.posted
        if not (wiped or less or forgotten or before.suspect):
            return None
        # Report no start of the lost period. Other processes may have posted since the rollback, so
        # the totals do not tell it.
        return self._end_era(before.era, None, found.now, wiped=wiped)

    @property
    def era(self) -> Era:
        """The current era. Read it, and its total of posts, before sending a post."""
        return self._era

    def posted(self, era: Era, before: int, stored: int, total: int) -> bool:
        """
        Check the *total* number of posts after a post of *stored* events.

        Args:
            era: The era in which the post was sent.
            before: The total of that era when the post was sent.
            stored: The number of events that the post has stored.
            total: The total in the reply.

        Returns:
            False if the total is too low. The caller then opens the namespace again, or leaves
            it to the node's next claim, which can find out since when writes are lost.
        """
        if era is not self._era:
            return True
        if total - stored < before:
            era.suspect = True
            return False
        era.posted = max(era.posted, total)
        return True

    def claimed(self, marks: Watermarks, reply: ClaimReply) -> None:
        """Check the reply to a claim against *marks*, which were read before the claim was sent."""
        if marks.era is not self._era:
            self._era.heard = None
            return
        error = None
        if marks.heard is not None:
            less = reply.posted is not None and reply.posted < marks.posted
            if reply.before is None and (less or marks.suspect):
                error = self._end_era(marks.era, marks.heard, reply.now_us, wiped=False)
            elif reply.before and reply.before < marks.heard:
                error = self._end_era(marks.era, reply.before, reply.now_us, wiped=False)
            # If `before` is 0, the server does not know this node. The node then registers, which
            # opens the namespace, and `opened` decides whether it was a rollback.
            elif reply.posted is not None and not less:
                marks.era.checked = max(marks.era.checked, marks.posted)
        era = self._era
        era.missing = marks.heard is not None and reply.before == 0 and not error
        era.heard = reply.heard
        if era.token < reply.token <= _MOST_TOKEN:
            era.token = reply.token
        if error:
            self.on_rollback(error)

    def _end_era(
        self, ended: Era, since: int | None, until: int, *, wiped: bool
    ) -> StateRollback | None:
        try:
            ended.unreported.pop()
        except IndexError:
            # Another call has detected the same rollback, and reports it.
            return None
        self._era = Era()
        ms = None if since is None else since / 1000
        return StateRollback(ms, until / 1000, wiped=wiped)
