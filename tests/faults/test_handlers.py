"""Faults F74 to F84: handlers that fail, hang, re-post, or change events and payloads."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from chaos.settings import PATIENT
from servers import LATER, PATIENCE, eventually

from dtimer import Cancelled, HandlerError, State
from faults.gated_handler import GatedHandler

pytestmark = pytest.mark.chaos


class Boom(Exception):
    """The handlers and listeners of this module raise this."""


@pytest.mark.fault("F74")
def test_an_event_is_retried_and_reported_each_time_its_handler_raises(watch):
    """
    Every other event of forty fails twice. Each failure is reported once, with the event's id
    and attempt, and the third attempt succeeds. The other events are handled on their first
    attempt and do not wait for the retries.
    """

    def handler(ev):
        if ev.get("bad") and ev.attempt < 3:
            raise Boom(ev.id)

    nodes = [watch.node(name, handler=handler) for name in ("one", "two")]
    with watch.fault(degraded=None):
        ids = [watch.post(more={"bad": n % 2}) for n in range(40)]
        watch.wait_handled(*ids)
    errors = [error for node in nodes for error in node.heard("error")]
    assert {HandlerError} == {type(error) for error in errors}
    reported = Counter((error.event.id, error.event.attempt) for error in errors)
    bad = [id for id in ids if watch.posted[id]["bad"]]
    assert {(id, attempt): 1 for id in bad for attempt in (1, 2)} == reported
    assert all(str(error.__cause__) == error.event.id for error in errors)
    attempts = {handled.id: handled.attempt for handled in watch.handled if handled.id in ids}
    assert {id: 3 if id in bad else 1 for id in ids} == attempts


@pytest.mark.fault("F75")
def test_a_raising_error_listener_does_not_stop_recovery(watch, own, caplog):
    """
    A listener of 'error' raises during an outage. Each exception is logged once, and the node
    still reconnects and serves again.
    """
    node = watch.node()

    def listener(error):
        raise Boom(error)

    node.timer.on("error", listener)
    own.kill9()
    eventually(lambda: node.errors)
    eventually(lambda: not node.timer.health().ok)
    own.start()
    watch.assert_recovery()
    # Another thread emits the errors, a moment later.
    eventually(
        lambda: (
            len([r for r in caplog.records if "a listener of 'error' raised" in r.getMessage()])
            == len(node.heard("error"))
        )
    )
    assert {Boom} == {r.exc_info[0] for r in caplog.records if r.exc_info}


@pytest.mark.fault("F76")
def test_heartbeats_keep_the_lease_of_a_long_handler(watch):
    """A handler that runs for three leases keeps its event, so no other node handles it."""
    held = GatedHandler()
    nodes = [watch.node("one", handler=held), watch.node("two")]
    id = watch.post()
    (ev,) = held.begun()
    with watch.fault(degraded=False, recovers=False):
        first = watch.client.zscore(watch.keys.due, id)
        more = 3 * PATIENT["lease"] * 1000
        eventually(lambda: watch.client.zscore(watch.keys.due, id) > first + more)
        assert not ev.lease_lost
        held.go_on(10_000)
    watch.assert_recovery()
    assert 1 == watch.times(id)
    assert [] == [node for node in nodes if node.heard("lease_lost")]


@pytest.mark.fault("F77")
def test_an_event_moves_on_after_max_run(watch):
    """
    After ``max_run`` the node stops renewing the lease, and another node receives the event.

    ``health()`` counts the handler thread as stuck; the other handler thread keeps working.
    When the handler returns at last, the lost lease is reported and its thread is free again.
    """
    held = GatedHandler()

    def handler(ev):
        if "hang" in ev and ev.attempt == 1:
            held(ev)

    slow = watch.node("slow", handler=handler, max_run=100, concurrency=2)
    id = watch.post(more={"hang": True})
    (ev,) = held.begun()
    # Handled twice: by the node that receives it next, and by the handler that hung.
    watch.excused.add(id)
    other = watch.node("other")
    watch.wait_handled(id)
    assert [2] == [handled.attempt for handled in watch.handled]
    assert ev.lease_lost
    assert 1 == slow.timer.health().stuck
    while "slow" not in {handled.node for handled in watch.handled if handled.id != id}:
        watch.wait_handled(watch.post())
    held.go_on(10_000)
    eventually(lambda: slow.heard("lease_lost"))
    eventually(lambda: slow.timer.health().stuck == slow.timer.health().handlers == 0)
    assert [] == other.heard("lease_lost")
    assert 0 == other.timer.stats().dead


@pytest.mark.fault("F78")
def test_a_node_without_a_listener_leaves_events_to_others(watch):
    """A joined node without a listener is healthy, claims no events and makes none late."""
    mute = watch.node("mute")
    mute.timer.remove_all_listeners("event")
    # The warning is logged once. Nothing else is reported.
    eventually(lambda: any("no listener" in line for line in watch.gauges.lines))
    watch.node("other")
    ids = [watch.post() for _ in range(30)]
    with watch.fault(degraded=False):
        watch.wait_handled(*ids)
    assert {"other"} == {handled.node for handled in watch.handled}
    assert mute.timer.health().ok


@pytest.mark.fault("F79")
def test_all_listeners_are_called_again_if_one_raises(watch):
    """
    A listener that raises does not keep the others from being called. The attempt has failed,
    and the next attempt calls all of them again.
    """
    node = watch.node()
    seen = []
    node.timer.on("event", lambda events: events[0].attempt == 1 and 1 / 0)
    node.timer.on("event", lambda events: seen.append(events[0].attempt))
    id = watch.post()
    # The watch's own listener is called in both attempts.
    watch.excused.add(id)
    eventually(lambda: node.timer.stats().totals.get("confirmed") == 1)
    assert [1, 2] == [handled.attempt for handled in watch.handled] == seen
    (error,) = node.heard("error")
    assert isinstance(error.__cause__, ZeroDivisionError)


@pytest.mark.fault("F80")
def test_each_event_of_a_chain_of_re_posts_is_delivered_once(watch):
    """
    A handler posts the id of its own event again and returns, two hundred times. Each event
    is delivered once and in order, by either node, and no lost lease is reported.
    """
    links = []
    nodes = []

    def handler(ev):
        if "link" not in ev:
            return
        links.append((ev["link"], ev.attempt))
        if ev["link"] < 200:
            nodes[0].timer.post({"link": ev["link"] + 1}, id=ev.id)

    watch.excused.add("chain")
    nodes += [watch.node(name, handler=handler) for name in ("one", "two")]
    nodes[0].timer.post({"link": 1}, id="chain")
    eventually(lambda: len(links) >= 200)
    assert [(n, 1) for n in range(1, 201)] == links
    eventually(lambda: nodes[0].timer.peek("chain") is None)
    watch.assert_recovery()
    # The other node may report a lost lease: it did not post the replacement itself.
    assert [] == nodes[0].errors
    assert 200 <= nodes[0].timer.stats().totals["started"]


@pytest.mark.fault("F81")
def test_a_handler_may_cancel_and_move_other_events(watch):
    """
    A pending event is cancelled or moved. For a running event the call returns that it is
    running, and the event ends as usual. Moving an unknown id creates no event.
    """
    held = GatedHandler()
    results = {}
    node = watch.node("one")
    watch.node("two", handler=lambda ev: "wait" in ev and held(ev))
    node.timer.remove_all_listeners("event")
    running = watch.post(more={"wait": True})
    held.begun()

    def change(events):
        timer = node.timer
        if events[0].id != "change":
            return
        results["cancel waiting"] = timer.cancel("waiting")
        results["move waiting"] = timer.reschedule("other", 0)
        results["cancel running"] = timer.cancel(running)
        results["move running"] = timer.reschedule(running, LATER)
        results["cancel nothing"] = timer.cancel("nothing")
        results["move nothing"] = timer.reschedule("nothing", 0)
        results["itself"] = timer.cancel(events[0].id)

    node.timer.post({}, LATER, id="waiting")
    node.timer.post({}, LATER, id="other")
    node.timer.on("event", change)
    node.timer.post({}, id="change")
    eventually(lambda: "itself" in results)
    eventually(lambda: node.timer.peek("other") is None)
    held.go_on(10_000)
    watch.wait_handled(running)
    assert {
        "cancel waiting": Cancelled.CANCELLED,
        "move waiting": True,
        "cancel running": Cancelled.IN_FLIGHT,
        "move running": False,
        "cancel nothing": Cancelled.NOT_FOUND,
        "move nothing": False,
        "itself": Cancelled.IN_FLIGHT,
    } == results
    assert [None] * 4 == [node.timer.peek(id) for id in ("waiting", "other", "change", "nothing")]


@pytest.mark.fault("F82")
def test_only_one_of_many_settlements_takes_effect(watch):
    """
    Ten threads confirm one event while ten others retry it. The event ends in one of the two
    ways. Calls that asked for it return True, the others return False, and none raises.
    """
    answers: dict[str, list[bool]] = {"confirm": [], "retry": []}
    raised = []

    def settle(ev, how, start):
        start.wait(PATIENCE)
        try:
            answers[how].append(ev.confirm() if how == "confirm" else ev.retry(LATER))
        except Exception as e:
            raised.append(e)

    def handler(ev):
        start = threading.Barrier(20)
        threads = [
            threading.Thread(target=settle, args=(ev, how, start))
            for how in ("confirm", "retry")
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

    node = watch.node(handler=handler)
    id = watch.post()
    watch.wait_handled(id)
    assert [] == raised
    record = node.timer.peek(id)
    if record is None:
        assert {"confirm": [True] * 10, "retry": [False] * 10} == answers
    else:
        assert State.SCHEDULED is record.state
        assert (False, 1) == (any(answers["confirm"]), sum(answers["retry"]))
        assert "cancelled" == node.timer.cancel(id).value


@pytest.mark.fault("F83")
def test_a_backlog_waits_in_redis_in_due_order(watch):
    """
    A node whose handlers are slower than the posts holds one event for each handler thread.

    The rest waits in Redis, where ``stats()`` shows how many events wait and for how long.
    They are delivered in the order of their due times.
    """
    held = GatedHandler()
    node = watch.node(handler=held, concurrency=2)
    ids = [watch.post() for _ in range(300)]
    for _ in range(2):
        held.begun()
    stats = node.timer.stats()
    assert (2, 298, 298) == (stats.in_flight, stats.scheduled, stats.overdue)
    assert stats.oldest_overdue_ms > 0
    assert 2 == node.timer.health().handlers
    assert 0 == held.waiting
    assert len(node.timer._node._dispatcher.held()) == 2
    held.go_on(10_000)
    watch.wait_handled(*ids)
    order = [ids.index(handled.id) for handled in watch.handled]
    # Two handler threads may overtake each other, so two events may be out of order, never three.
    longest = [0] * len(order)
    for n, place in enumerate(order):
        longest[n] = 1 + max((longest[i] for i in range(n) if order[i] > place), default=0)
    assert max(longest) <= 2


@pytest.mark.fault("F84")
def test_a_retry_receives_the_original_payload(watch):
    """Changes that a handler makes to its payload are not visible to the next attempt."""

    def handler(ev):
        seen.append((ev["list"], dict(ev["map"]), set(ev)))
        attempt = ev.attempt
        ev["list"] = ev["list"] + ["mine"]
        ev["map"].clear()
        ev["more"] = True
        if attempt < 4:
            raise Boom
        ev.clear()
        ev.update(watch.posted[ev.id])

    seen = []
    for name in ("one", "two"):
        watch.node(name, handler=handler)
    id = watch.post(more={"list": [1], "map": {"a": {}}})
    watch.wait_handled(id)
    assert [([1], {"a": {}}, {"n", "list", "map"})] * 4 == seen
