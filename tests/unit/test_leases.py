"""The leases of a node: which it holds and trusts, and how each is settled. No handler runs."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

import pytest
from seats import Announced, FakeLeaseStore, claim, make_leases, summary
from servers import PATIENCE

from dtimer.engine.clock import boottime
from dtimer.engine.leases import MOST_SETTLEMENTS
from dtimer.errors import LeaseLost, OptionError, OutcomeUnknown, StoreError
from dtimer.model.claims import Outcome, Renewal, Settlement, Verdict


class Leases:
    """A table of leases, the store of its events, and all that it announces."""

    def __init__(self, **options):
        self.store, self.announced = FakeLeaseStore(), Announced()
        self.table = make_leases(self.store, self.announced, **options)

    def grant(self, *claims):
        """Return the events of these claims, or of one claim."""
        return [lease.event for lease in self.table.grant(claims or [claim()], time.monotonic())]

    @property
    def held(self):
        return self.table.held()

    def confirm_all(self):
        """Confirm the held leases, as after their handler; return the settlements."""
        self.table.settle_as(self.held, Verdict.CONFIRM)
        return self.table.take_settlements()


@pytest.fixture
def leases():
    return Leases()


def confirmed(event):
    return [(event.id, event.token, Verdict.CONFIRM)]


class TestGrant:
    """The leases of a claim's reply, and their events."""

    def test_an_event_has_the_data_of_its_claim(self, leases):
        """The lateness is measured by the server's clock."""
        (ev,) = leases.grant(claim(b'{"a":1}', id="tea", attempt=2, max_retries=7))
        assert {"a": 1} == ev
        assert ("tea", 2, 7, 1.0) == (ev.id, ev.attempt, ev.max_retries, ev.due)
        assert 2.0 == ev.lateness_ms

    def test_lateness_is_never_negative(self, leases):
        """The server's clock may step back between the due time and the claim."""
        (ev,) = leases.grant(replace(claim(), claimed_us=-3_600_000_000))
        assert 0 == ev.lateness_ms

    def test_buries_a_corrupt_payload_and_grants_the_rest(self, leases):
        """No handler could read it, and each retry would fail the same way."""
        bad = claim(b"\xff")
        (good,) = leases.grant(bad, claim())
        (settlement,) = leases.table.take_settlements()
        assert (bad.id, bad.token, Verdict.BURY) == summary([settlement])[0]
        assert "corrupt" == settlement.reason
        leases.table.settled([settlement], [Outcome.DEAD])
        assert [("buried", bad.id)] == leases.announced.all()
        assert confirmed(good) == summary(leases.confirm_all())


class TestSettling:
    """Each event is settled once: by a call of its handler, or else after the handler."""

    def test_does_not_confirm_again_what_the_handler_confirmed(self, leases):
        """A second confirm would be reported as a lost lease."""
        first, second = leases.grant(claim(), claim())
        assert first.confirm() is True
        assert confirmed(second) == summary(leases.confirm_all())
        assert confirmed(first) == summary(leases.store.settled)

    def test_confirms_after_the_handler_if_its_own_confirm_failed(self, leases):
        """The event must not run again because of a lost connection."""
        (ev,) = leases.grant()
        leases.store.outcomes.append(StoreError("no reply"))
        with pytest.raises(StoreError):
            ev.confirm()
        assert confirmed(ev) == summary(leases.confirm_all())

    @pytest.mark.parametrize("waits", [True, False], ids=["in time", "too late"])
    def test_settles_once_if_a_confirm_of_another_thread_fails(self, leases, monkeypatch, waits):
        """
        The handler returns while another thread still confirms. If that fails in time, the event is
        confirmed again. The handler thread does not wait for ever: if it fails later, the lease
        ends by itself, and is not renewed meanwhile.
        """
        (ev,) = leases.grant()
        (lease,) = leases.held
        gate = leases.store.reply_gate = threading.Event()
        leases.store.outcomes.append(OutcomeUnknown("no reply"))
        failed = []

        def confirm():
            try:
                ev.confirm()
            except OutcomeUnknown as e:
                failed.append(e)

        other = threading.Thread(target=confirm)
        other.start()
        assert leases.store.asked.wait(PATIENCE)
        if waits:
            gate.set()
        else:
            monkeypatch.setattr("dtimer.engine.lease.Lease._longest_wait", 0.0)
        leases.table.settle_as([lease], Verdict.CONFIRM)
        gate.set()
        other.join(PATIENCE)
        assert 1 == len(failed)
        assert (confirmed(ev) if waits else []) == summary(leases.table.take_settlements())
        assert [] == leases.held

    def test_the_second_of_two_confirms_waits_for_the_result_of_the_first(self, leases):
        """Both callers must learn the same outcome."""
        (ev,) = leases.grant()
        gate = leases.store.reply_gate = threading.Event()
        leases.store.outcomes.append(Outcome.STALE)
        results = []
        threads = [threading.Thread(target=lambda: results.append(ev.confirm())) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert leases.store.asked.wait(PATIENCE)
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert [False, False] == results
        assert 1 == len(leases.store.settled)
        assert [] == leases.confirm_all()

    def test_announces_the_outcome_of_each_settlement(self, leases):
        """'retry', 'buried' and 'lease_lost' report the result of each event of a batch."""
        events = leases.grant(*(claim() for _ in range(4)))
        leases.table.settle_as(leases.held, Verdict.RETRY)
        settlements = leases.table.take_settlements()
        results = [Outcome.DONE, Outcome.DEAD, Outcome.CANCELLED, Outcome.STALE]
        leases.table.settled(settlements, results)
        retry, buried, lost, (what, error) = leases.announced.all()
        assert ("retry", events[0]) == retry
        assert ("buried", events[1].id) == buried
        assert ("lease_lost", events[3]) == lost
        assert ("error", LeaseLost) == (what, type(error))
        assert (events[3].id, "test", events[3].token) == (error.id, error.node, error.token)
        assert events[3].lease_lost
        leases.table.settled(settlements, results)
        assert [] == leases.announced.all()

    def test_does_not_report_the_loss_of_events_that_this_process_replaced(self, leases):
        """The process knows that the old event is gone."""
        events = leases.grant(*(claim() for _ in range(3)))
        leases.table.superseded({events[0].id, events[1].id})
        held = leases.held
        leases.table.mark_lost(held[0])
        leases.table.settle_as(held, Verdict.CONFIRM)
        leases.table.settled(leases.table.take_settlements(), [Outcome.STALE] * 3)
        (lost, error) = leases.announced.all()
        assert ("lease_lost", "error") == (lost[0], error[0])
        assert events[2] is lost[1]
        assert all(ev.lease_lost for ev in events)

    def test_does_not_report_a_released_event_that_was_gone(self, leases):
        """The node gave the event up, so its loss does not matter."""
        leases.grant()
        leases.table.release(leases.held)
        leases.table.settled(leases.table.take_settlements(), [Outcome.STALE])
        assert [] == leases.announced.all()
        assert [] == leases.held

    def test_abandon_retries_running_events_and_revokes_their_lease(self, leases):
        """
        The attempt is counted. The handler can see the loss, its confirm returns False, and its
        return changes nothing.
        """
        (ev,) = leases.grant()
        (lease,) = leases.held
        leases.table.abandon()
        (settlement,) = leases.table.take_settlements()
        assert [(ev.id, ev.token, Verdict.RETRY)] == summary([settlement])
        assert 0 == settlement.wait_us
        assert "left" in settlement.error
        assert ev.lease_lost
        assert ev.confirm() is False
        leases.table.settle_as([lease], Verdict.CONFIRM)
        leases.table.abandon()
        assert not leases.table.unsettled

    def test_retry_refuses_an_invalid_delay_before_settling(self, leases):
        """The handler can still retry with a valid one."""
        (ev,) = leases.grant()
        with pytest.raises(OptionError):
            ev.retry("soon")
        assert ev.retry(1_500) is True
        (settlement,) = leases.store.settled
        assert (Verdict.RETRY, 1_500_000) == (settlement.verdict, settlement.wait_us)
        assert ev.confirm() is False
        assert [("retry", ev)] == leases.announced.all()


class TestSettleLater:
    """A settlement that a later claim carries, in place of a call."""

    def test_the_next_claim_snoozes_the_event_for_the_reason(self, leases):
        """A router snoozes an event of an unknown kind without a call of its own."""
        (ev,) = leases.grant()
        (lease,) = leases.held
        wait = {"wait": 1_000_000, "reason": "unknown_kind"}
        assert lease.settle_later(Verdict.SNOOZE, **wait)
        assert [] == leases.held
        (settlement,) = leases.table.take_settlements()
        expected = Settlement(*lease.key, Verdict.SNOOZE, 1_000_000, reason="unknown_kind")
        assert expected == settlement
        leases.table.settled([settlement], [Outcome.DONE])
        assert [] == leases.announced.all()
        assert ev.confirm() is False

    def test_it_changes_nothing_if_the_event_is_settled_already(self, leases):
        """The first party to settle an event decides."""
        (ev,) = leases.grant()
        (lease,) = leases.held
        ev.snooze(5_000)
        assert not lease.settle_later(Verdict.BURY, error="no", reason="buried")
        assert not leases.table.unsettled


class TestSettlements:
    """The settlements that a claim carries."""

    def test_a_claim_carries_a_bounded_number(self, leases):
        """A script with more of them would block the server."""
        leases.table.settle([Settlement(str(n), n, Verdict.CONFIRM) for n in range(400)])
        assert MOST_SETTLEMENTS == len(leases.table.take_settlements())
        assert leases.table.unsettled
        assert 400 - MOST_SETTLEMENTS == len(leases.table.take_settlements())
        assert not leases.table.unsettled

    @pytest.mark.parametrize(
        ("count", "length", "expected"), [(60, 2_000, [25, 25, 10]), (21, 90_000, [1])]
    )
    def test_a_claim_carries_a_bounded_number_of_bytes_of_errors(
        self, leases, count, length, expected
    ):
        """On a slow connection, a large batch is sent in several claims, and none is dropped."""
        settlements = [
            Settlement(str(n), n, Verdict.RETRY, error="x" * length) for n in range(count)
        ]
        leases.table.settle(settlements)
        taken = [leases.table.take_settlements() for _ in expected]
        assert expected == [len(each) for each in taken]
        assert settlements[: sum(expected)] == [s for each in taken for s in each]


class TestHeld:
    """Which leases are renewed, and until when the node trusts a lease."""

    def test_holds_events_until_they_are_settled(self, leases):
        """Only held events are renewed."""
        first, *others = leases.grant(*(claim() for _ in range(3)))
        first.confirm()
        assert [ev.id for ev in others] == [lease.claim.id for lease in leases.held]
        leases.confirm_all()
        assert [] == leases.held

    def test_stops_renewing_after_max_run_and_counts_the_event_as_stuck(self):
        """A handler that hangs must not keep its event for ever."""
        leases = Leases(max_run=10_000)
        leases.grant(claim(), claim())
        for lease in leases.held:
            lease.started = time.monotonic()
        assert (2, 0) == (len(leases.held), leases.table.stuck())
        for lease in leases.held:
            lease.started -= 11
        assert (0, 2) == (len(leases.held), leases.table.stuck())

    def test_trusts_a_lease_for_nine_tenths_from_when_it_was_requested(self, leases):
        """The rest absorbs clock drift and slow replies."""
        (ev,) = leases.grant()
        (lease,) = leases.held
        now = time.monotonic()
        lease.renewed(now - 80, 100_000_000)
        assert not ev.lease_lost
        lease.renewed(now - 90.1, 100_000_000)
        assert ev.lease_lost
        lease.renewed(now, 100_000_000)
        assert not ev.lease_lost
        assert lease.mark_lost()
        assert not lease.mark_lost()
        assert ev.lease_lost

    def test_reports_a_lost_lease_once(self, leases):
        """A heartbeat and a confirm may both find the loss."""
        (ev,) = leases.grant()
        (lease,) = leases.held
        for _ in range(2):
            leases.table.mark_lost(lease)
        assert [("lease_lost", ev)] == leases.announced.all()


class TestCancelled:
    """Knowledge that the result of a running handler is not wanted any more."""

    def test_a_loss_while_the_lease_is_trusted_means_that_the_event_was_replaced(self, leases):
        """No other node was given the event, so only a later post can have ended the lease."""
        first, second = leases.grant(claim(), claim())
        replaced, expired = leases.held
        expired.distrust()
        for lease in (replaced, expired):
            leases.table.mark_lost(lease)
        assert [(True, True), (True, False)] == [
            (ev.lease_lost, ev.cancelled) for ev in (first, second)
        ]

    def test_the_reply_to_an_extension_says_it(self, leases):
        """A handler that extends its lease need not wait for the heartbeat."""
        (ev,) = leases.grant()
        leases.store.outcomes.append(Renewal.CANCELLED)
        assert ev.extend(60_000) is True
        assert ev.cancelled
        assert not ev.lease_lost


class TestExtend:
    """A call of ``ev.extend`` with a lease of 30 s."""

    @pytest.fixture
    def extended(self, leases):
        """An event whose lease was extended to 60 s, and its lease."""
        (ev,) = leases.grant()
        (lease,) = leases.held
        assert 30_000_000 == lease.lease_us(time.monotonic())
        assert ev.extend(60_000) is True
        return ev, lease

    def test_renews_at_once_and_later_renewals_do_not_shorten_it(self, leases, extended):
        """The next heartbeat must not shorten a lease that the handler extended."""
        ev, lease = extended
        assert [([(ev.id, ev.token)], 60_000_000)] == leases.store.extended
        now = time.monotonic()
        assert 30_000_000 < lease.lease_us(now) <= 60_000_000
        assert 30_000_000 == lease.lease_us(now + 55)
        leases.store.outcomes.append(False)
        assert ev.extend(1_000) is False
        assert ev.lease_lost
        with pytest.raises(OptionError):
            ev.extend("long")

    def test_never_shortens_the_lease_of_a_running_handler(self, leases, extended):
        """
        If the lease ended sooner, a second node would start the event while the first still runs
        it. The server decides what is left of the lease. The node still trusts the longer one, and
        the next heartbeat asks for it.
        """
        ev, lease = extended
        believed = lease._trusted_until
        assert ev.extend(300) is True
        assert [True, True] == leases.store.at_least
        assert believed == lease._trusted_until
        assert 30_000_000 < lease.lease_us(time.monotonic())

    def test_is_exact_after_the_handler_has_returned(self, leases, extended):
        """Work that outlives its handler holds the event exactly as long as it asks."""
        ev, lease = extended
        lease.running = False
        assert ev.extend(300) is True
        assert [True, False] == leases.store.at_least
        assert lease._trusted_until < boottime() + 1
        assert 30_000_000 == lease.lease_us(time.monotonic() + 1)

    @pytest.mark.parametrize("error", [StoreError("no"), OutcomeUnknown("perhaps")])
    def test_renews_a_failed_extension_only_if_it_may_have_taken_effect(self, leases, error):
        """A refused extension must not hold the event for longer."""
        (ev,) = leases.grant()
        (lease,) = leases.held
        leases.store.outcomes.append(error)
        with contextlib.suppress(StoreError):
            ev.extend(60_000)
        unknown = isinstance(error, OutcomeUnknown)
        assert unknown == (lease.lease_us(time.monotonic()) > 30_000_000)

    def test_returns_false_for_a_settled_event_without_a_call(self, leases):
        """The answer is known without asking the server."""
        (ev,) = leases.grant()
        ev.confirm()
        assert ev.extend(1_000) is False
        assert [] == leases.store.extended
