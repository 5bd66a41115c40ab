"""The log of real nodes: each record when its cause happens, no secrets, and no deadlock."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys

import pytest
from gated import Gated
from logged import kept
from pages import ROOT
from servers import LATER, PATIENCE, Server, eventually

from dtimer import DTimer, log
from dtimer.faultpoints import arm
from dtimer.testing import Catch

#: The secrets that no record may contain.
USER, PASSWORD, PAYLOAD = "hunter2user", "hunter2pass", "hunter2load"


@pytest.fixture
def records():
    """All records of the test, from level debug on."""
    with kept() as records:
        yield records


def only(records, message):
    """Return the one record of *message*, which its cause has put on its way."""
    eventually(lambda: records.of(message))
    (record,) = records.of(message)
    return record


def has_fields_of_node(record, timer):
    expected = (timer.id, timer.ns, timer._node.incarnation)
    return expected == (record.node, record.ns, record.incarnation)


@pytest.fixture
def restricted(tcp_server):
    """A function: make a timer of a user with the given ACL rules."""

    def restricted(*rules, user="known", password="secret", **options):
        with tcp_server.client() as admin:
            admin.execute_command("ACL", "SETUSER", user, "reset", "on", f">{password}", *rules)
        url = tcp_server.url.replace("redis://", f"redis://{user}:{password}@")
        return DTimer("node", url, **options)

    return restricted


class TestSteps:
    """The records of an event's life and of a node's, each with its fields."""

    def test_a_node_joins_and_leaves(self, make, records):
        """An operator sees at level info which processes are nodes."""
        timer = make()
        timer.on("event", lambda events: None)
        with timer:
            joined = only(records, log.JOINED)
        left = only(records, log.LEFT)
        for record in (joined, left):
            assert logging.INFO == record.levelno
            assert has_fields_of_node(record, timer)
            assert [] == record.event_ids

    @pytest.mark.parametrize("count", [1, 100])
    def test_events_are_claimed_started_and_confirmed(self, make, records, count):
        """The id of an event finds all of its steps. A batch is three records, not hundreds."""
        timer = make(max_events=100, poll_interval=LATER)
        timer.on("event", lambda events: None)
        ids = timer.post_many([({}, 0)] * count)
        with timer:
            for message in (log.CLAIMED, log.STARTED, log.CONFIRMED):
                record = only(records, message)
                assert logging.DEBUG == record.levelno
                assert has_fields_of_node(record, timer)
                assert sorted(ids) == sorted(record.event_ids)
                if count == 1:
                    assert message.text % (1, ids[0]) == record.getMessage()

    def test_a_failed_event_is_retried_and_then_a_dead_letter(self, make, records):
        """The log shows how an event came to be a dead letter."""
        timer = make(max_retries=1, backoff=1)
        dead = Catch(timer, "dead")
        timer.on("error", lambda error: None)

        @timer.on("event")
        def fail(events):
            raise ValueError("no")

        with timer:
            id = timer.post({})
            dead.next()
            assert [id] == only(records, log.RETRIED).event_ids
            assert [id] == only(records, log.BURIED).event_ids

    def test_an_event_without_a_listener_is_released(self, make, records):
        """A release explains why an event that was claimed did not start."""
        timer = make()
        timer.on("event", lambda events: None)

        def remove():
            if timer._node._seat.unread.reply.claims:
                timer.remove_all_listeners("event")

        with arm("claim.answered", remove), timer:
            id = timer.post({})
            assert [id] == only(records, log.RELEASED).event_ids

    def test_a_call_of_confirm_is_logged(self, make, records):
        """Without ``auto_confirm`` the log shows when the program has confirmed."""
        timer = make(auto_confirm=False)
        caught = Catch(timer, "event")
        with timer:
            id = timer.post({})
            (event,) = caught.next()
            assert [] == records.of(log.CONFIRMED)
            assert event.confirm()
            assert [id] == only(records, log.CONFIRMED).event_ids

    def test_a_lost_lease_is_logged(self, make, records):
        """The log of both processes together shows which of them replaced the event."""
        timer, other_node = make(), make("other")
        lost = Catch(timer, "lease_lost")
        timer.on("error", lambda error: None)
        handler = Gated(timer)
        with timer:
            timer.post({}, id="tea")
            handler.begun()
            other_node.post({}, LATER, id="tea")
            handler.go_on()
            assert "tea" == lost.next().id
            record = only(records, log.LEASE_LOST)
            assert has_fields_of_node(record, timer)
            assert ["tea"] == record.event_ids

    def test_a_wake_is_logged(self, make, records):
        """A missing wake is the first suspicion if events are late."""
        timer, other_node = make(poll_interval=LATER), make("other")
        caught = Catch(timer, "event")
        with timer:
            eventually(lambda: timer.health().ok and timer.nodes()[0].waiting)
            other_node.post({})
            caught.next()
            assert has_fields_of_node(only(records, log.WAKE_HEARD), timer)


class TestTrouble:
    """The records of outages and of faulty servers."""

    def test_an_outage_begins_and_ends_with_attempts_between(self, records):
        """At level info an outage is two records, however many attempts fail meanwhile."""
        with Server(appendonly=True) as own:
            timer = DTimer("node", own.url, poll_interval=50)
            timer.on("event", lambda events: None)
            for name in ("error", "disconnected"):
                timer.on(name, lambda error: None)
            with timer:
                eventually(lambda: timer.health().ok)
                own.kill9()
                for message in (log.CLAIMING_AGAIN, log.SUBSCRIBING_AGAIN):
                    eventually(lambda message=message: len(records.of(message)) > 2)
                    assert has_fields_of_node(records.of(message)[0], timer)
                began = only(records, log.OUTAGE_BEGAN)
                assert has_fields_of_node(began, timer)
                assert timer._store.server.source.address in began.getMessage()
                own.start()
                assert has_fields_of_node(only(records, log.OUTAGE_ENDED), timer)
                eventually(lambda: timer.health().ok)
        (began, ended) = (records.of(m) for m in (log.OUTAGE_BEGAN, log.OUTAGE_ENDED))
        assert (1, 1) == (len(began), len(ended))

    def test_a_refused_permission_is_a_warning(self, restricted, records):
        """A node that can do without pub/sub says what to grant, and that events may be late."""
        timer = restricted("~*", "resetchannels", "+@all")
        timer.on("event", lambda events: None)
        timer.on("error", lambda error: None)
        with timer:
            for message in (log.REFUSED, log.DEAF):
                record = only(records, message)
                assert message.level == record.levelno
                assert has_fields_of_node(record, timer)
                assert "channel" in record.getMessage()

    def test_a_warning_is_logged_although_the_join_then_fails(
        self, tcp_server, restricted, records
    ):
        """The warning may be the reason why the join failed."""
        with tcp_server.client() as admin:
            admin.config_set("maxmemory-policy", "allkeys-lru")
        timer = restricted("~*", "&*", "+@all", "-zadd")
        with pytest.raises(Exception, match="ACL SETUSER"):
            timer.join()
        assert logging.WARNING == only(records, log.EVICTS).levelno
        assert [] == records.of(log.JOINED)
        assert [] == records.of(log.LEFT)


class TestLaws:
    """Rules for every record, and for every program that logs."""

    def test_no_record_contains_a_secret(self, tcp_server, restricted, records):
        """A log is read by more people than the data: no payload, user or password is in it."""
        options = {"max_retries": 1, "backoff": 1}
        timer = restricted("~*", "&*", "+@all", user=USER, password=PASSWORD, **options)
        attempts = []

        @timer.on("event")
        def handle(events):
            attempts.extend(events)
            if events[0].id == "fails":
                raise ValueError("no")

        with timer:
            timer.post({"a": PAYLOAD}, id="fails")
            timer.post({"b": PAYLOAD}, id="works")
            timer.every(60_000, {"c": PAYLOAD}, id="tick")
            timer.run_now("tick")
            eventually(lambda: len(attempts) > 3)
            eventually(lambda: records.of(log.BURIED))
            with tcp_server.client() as admin:
                admin.execute_command("ACL", "SETUSER", USER, "off")
                admin.execute_command("CLIENT", "KILL", "USER", USER)
                eventually(lambda: records.of(log.OUTAGE_BEGAN))
                admin.execute_command("ACL", "SETUSER", USER, "on")
            eventually(lambda: records.of(log.OUTAGE_ENDED))
        formatter = logging.Formatter("%(message)s")
        texts = [f"{formatter.format(record)} {vars(record)}" for record in records.kept]
        seen = {record.msg for record in records.kept}
        steps = (log.CLAIMED, log.STARTED, log.CONFIRMED, log.RETRIED, log.UNHEARD)
        assert {message.text for message in steps} <= seen
        assert [] == [text for text in texts if "hunter2" in text]

    def test_a_node_at_work_prints_nothing_by_default(self, server, namespace):
        """Only an error without a listener is printed: a failing handler must not look well."""
        program = """
import sys, threading
from dtimer import DTimer
handled, failed = threading.Event(), threading.Event()
dt = DTimer("node", sys.argv[1], ns=sys.argv[2], max_retries=0)
@dt.on("event")
def handle(events):
    if "fail" in events[0]:
        raise ValueError("the shop is closed")
    handled.set()
with dt:
    dt.post({})
    handled.wait(30)
    print("handled", file=sys.stderr, flush=True)
    dt.on("dead", lambda letter: failed.set())
    dt.post({"fail": 1})
    failed.wait(30)
"""
        ran = subprocess.run(
            [sys.executable, "-c", program, server.url, namespace],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            cwd=ROOT,
        )
        before, _, after = ran.stderr.partition("handled\n")
        assert ("", "") == (ran.stdout, before)
        assert after.startswith("a handler raised ValueError: the shop is closed")

    def test_without_debug_records_only_joined_and_left_are_queued(self, make, monkeypatch):
        """A log that is off costs no call for an event, only the test of an attribute."""
        added, add = [], log.Log.add
        monkeypatch.setattr(
            log.Log, "add", lambda self, m, *a, **k: (added.append(m), add(self, m, *a, **k))
        )
        timer = make(max_events=10)
        timer.on("event", lambda events: None)
        timer.post_many([({}, 0)] * 50)
        with kept(logging.INFO), timer:
            eventually(lambda: timer.stats().totals.get("confirmed") == 50)
        assert [log.JOINED, log.LEFT] == [m for m in added if m is not log.WAKE_HEARD]

    def test_a_level_is_changed_while_the_node_has_joined(self, make):
        """An operator turns debug records on without a restart."""
        timer = make(poll_interval=50)
        timer.on("event", lambda events: None)
        with kept(logging.INFO) as records, timer:
            timer.post({})
            eventually(lambda: timer.stats().totals.get("confirmed"))
            assert [] == records.of(log.CLAIMED)
            log.logger.setLevel(logging.DEBUG)
            eventually(lambda: timer.post({}) and records.of(log.CLAIMED))

    def test_a_slow_log_delays_no_event(self, make):
        """A log on a full disk or a slow network must not make events late."""
        timer = make(poll_interval=50)
        caught = Catch(timer, "event")
        with kept() as records, timer:
            with records.lock:
                for _ in range(5):
                    timer.post({})
                    caught.next()
            eventually(lambda: 5 == sum(len(r.event_ids) for r in records.of(log.STARTED)))

    @pytest.mark.parametrize("lock", ["handler", "module"])
    def test_a_leave_in_a_signal_handler_does_not_wait_for_the_lock_of_a_log(self, make, lock):
        """Every record of the node waits for the lock that the interrupted main thread holds."""
        timer = make()
        handler = Gated(timer)
        left = []
        before = signal.signal(
            signal.SIGUSR1, lambda *_: (handler.go_on(), left.append(timer.leave()))
        )
        try:
            with kept() as records:
                timer.join()
                timer.post({})
                handler.begun()
                held = records.lock if lock == "handler" else logging._lock
                # As a change of the level does: the next isEnabledFor takes the module's lock.
                log.logger.manager._clear_cache()
                with held:
                    signal.raise_signal(signal.SIGUSR1)
                    assert [None] == left
                    assert not timer.joined
                only(records, log.LEFT)
        finally:
            signal.signal(signal.SIGUSR1, before)
