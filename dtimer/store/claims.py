"""The operations on claims and their leases: claim, settle, extend."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dtimer.model.claims import ClaimReply, ClaimRequest, Outcome, PendingReply, Renewal, Settlement
from dtimer.store import replies
from dtimer.store.failures import Failure, broken_reply, classify, overtaken
from dtimer.store.namespace import Namespace
from dtimer.store.reply_checks import understood
from dtimer.store.rollback import RollbackDetector
from dtimer.store.scripts import verb

_CLAIM = verb(
    "claim",
    *("node", "limit", "lease", "flags", "heard", "ahead"),
    *("confirms", "others", "settlements..."),
)
_EXTEND = verb("extend", "lease", "leases...")
_SETTLE = verb("settle", "confirms", "others", "settlements...")


class Claims:
    """
    Claims events for nodes, and settles and extends their leases.

    Args:
        namespace: Calls the scripts.
        rollback: Checks the replies to claims.
    """

    def __init__(self, namespace: Namespace, rollback: RollbackDetector) -> None:
        self._namespace = namespace
        self._rollback = rollback
        # The session of a node's claims, by incarnation, if it is not named after the incarnation.
        self._sessions: dict[str, str] = {}

    def start(self, incarnation: str, request: ClaimRequest, lease_us: int) -> PendingReply:
        """
        Send one request that settles leases, claims events, and asks when to claim again.

        Returns:
            A function that waits for the reply and returns it; call it exactly once. Pass
            ``read_late=True`` if the caller has done other work since the request was sent.

        Raises:
            Exception: An error of the client library or of dtimer, from this call or from the
                returned function. The caller must send the same request again until it is answered.
        """
        settled, order = replies.settlement_arguments(request.settlements)
        known = self._rollback.known
        flags = ("h" if request.hears else "") + ("l" if request.lags else "")
        flags += "e" if request.echo else ""
        flags += str(request.resends or "")
        if request.most_bytes is not None:
            flags += f",{request.most_bytes}{'!' if request.strict else ''}"
        arguments = (
            incarnation,
            str(request.limit),
            str(lease_us),
            flags + ("p" if self._rollback.wants_total else ""),
            "" if known.heard is None else str(known.heard),
            str(request.ahead_us),
            *settled,
        )
        session = self._sessions.get(incarnation, incarnation)
        # The same thread renews leases, every third of a lease. A reply may not delay it longer.
        most = lease_us / 3e6
        scripts, op = self._namespace.scripts, f"{session}:{request.seq}"
        # Only events that are claimed ahead wait for the time that is left until they are due.
        with_time = request.ahead_us > 0
        call = scripts.start(
            _CLAIM, *arguments, op=op, longest=most, with_time=with_time, keep_lock=request.lags
        )

        def answer(*, read_late: bool) -> ClaimReply:
            try:
                reply = call.answer(read_late=read_late)
            except Exception as e:
                # Only an incomplete reply is reported as broken, which makes the next claim
                # smaller. An error reply is complete, so the connection need not be slow.
                if call.arrived and classify(e, sent=True) is Failure.UNKNOWN:
                    raise broken_reply(e, call.arrived) from e
                if not overtaken(e):
                    raise
                # A node makes one claim at a time, and this is its latest. So a later operation in
                # this session was not made by this node, and would block its claims for minutes.
                own = self._sessions[incarnation] = f"{incarnation}-{request.seq}"
                reply = scripts.call_once(_CLAIM, *arguments, op=f"{own}:{request.seq}")
            now = time.monotonic()
            ended = call.ended_us
            result = understood(
                _CLAIM, lambda r: replies.read_claim_reply(r, order, now, ended), reply
            )
            self._rollback.claimed(known, result)
            return result

        return answer

    def settle(self, settlements: Sequence[Settlement]) -> list[Outcome]:
        """Settle leases outside the claim cycle; return one outcome for each, in order."""
        arguments, order = replies.settlement_arguments(settlements)
        return self._namespace.ask(lambda r: replies.read_results(r, order), _SETTLE, *arguments)

    def extend(
        self, held: Sequence[tuple[str, int]], lease_us: int, *, at_least: bool = False
    ) -> list[Renewal]:
        """
        Extend leases, given as (id, token); return the outcome of each.

        With *at_least*, a lease that already lasts longer is not shortened. A handler calls this,
        and it is retried up to the deadline of a call. See also `renew`.
        """
        lease = f"{'+' if at_least else ''}{lease_us}"
        arguments = [lease, *(str(word) for claim in held for word in claim)]
        return self._namespace.ask(
            lambda r: replies.read_renewals(r, len(held)), _EXTEND, *arguments
        )

    def renew(self, held: Sequence[tuple[str, int]], lease_us: int) -> list[Renewal]:
        """Do the same as `extend` in one attempt, for the heartbeat, which repeats it itself."""
        arguments = [str(word) for claim in held for word in claim]
        reply = self._namespace.scripts.call_once(_EXTEND, str(lease_us), *arguments)
        return understood(_EXTEND, lambda r: replies.read_renewals(r, len(held)), reply)
