"""
Decide when to claim again after a reply.

Nothing here has a thread, a clock or chance: numbers go in, and numbers come out. A component that
needs a claim sooner rings the bell (`claimer`). Other modules decide about these waits:

- after a claim that failed: `Connectivity.failed`
- while the reply to a claim that was sent ahead is under way: `ClaimCycle._apply`
- for more settlements that the next claim can carry: `LeaseTable.linger`
- until an event that was claimed ahead is due: `Claimer._next_action_at`
- of a leaving node for a server that does not answer: `Claimer._outage_wait_left`
- until the next event is due, which the server knows: ``lua/claim/wait.lua``
"""

from __future__ import annotations

# The longest single wait, in seconds. A longer poll interval becomes several waits.
_LONGEST_WAIT = 30.0


def must_claim_at_once(
    limit: int, claimed: int, spare: int, *, hears: bool, said_hears: bool
) -> bool:
    """
    Return whether the next claim follows a reply without a wait.

    Args:
        limit: How many events the claim asked for.
        claimed: How many it got.
        spare: How many more events the free handler threads can start.
        hears: Whether wakes reach this node.
        said_hears: Whether the claim said so.
    """
    if spare <= 0:
        return False
    # A full reply means that more events may be due. After a claim that said `hears=False`, the
    # node is not on the roster, so no wake would come.
    return 0 < limit == claimed or (hears and not said_hears)


def seconds_until_next(
    poll: float,
    jitter: float,
    echo: float,
    *,
    wait: float | None = None,
    more_ahead: float = 0.0,
    heartbeat: float | None = None,
    leave: float | None = None,
) -> float:
    """
    Return for how many seconds the node may wait before its next claim.

    Args:
        poll: The seconds between two polls, at most.
        jitter: A random fraction below 1, which keeps nodes from polling together.
        echo: The seconds until an echo is due.
        wait: The seconds from now until the next claim finds an event if it is sent as long before
            the due time as this one. None if the server cannot tell.
        more_ahead: How many seconds further ahead the next claim looks than the last one did.
        heartbeat: The seconds until a heartbeat is due; None if the node has no running event.
        leave: The seconds until a leaving node gives up its running handlers; None if it does not.
    """
    seconds = min(min(poll, _LONGEST_WAIT) * jitter, echo)
    if wait is not None:
        # The wait allows for half of the last claim's look-ahead. Allow for the next claim's.
        seconds = min(seconds, wait - max(0.0, more_ahead) / 2)
    if heartbeat is not None:
        seconds = min(seconds, heartbeat)
    if leave is not None:
        seconds = min(seconds, leave)
    return max(0.0, seconds)
