"""Faults F74 to F83: handlers that fail, hang, re-post, or change events."""

from __future__ import annotations

import queue
from collections import Counter

import pytest
from background import together
from chaos.settings import PATIENT
from gated import Gated
from servers import LATER, PATIENCE, eventually

from dtimer import HandlerError, State

pytestmark = pytest.mark.chaos


class Boom(Exception):
    """The handlers and listeners of this module raise this."""


@pytest.mark.fault("F74")
def test_an_event_is_retried_and_reported_each_time_its_handler_raises(watch):
    """The error has the id and the attempt. Other events do not wait for the retries."""

    def handler(ev):
        if ev.get("bad") and ev.attempt < 3:
            raise Boom(ev.id)

    nodes = [watch.node(name, handler=handler) for name in ("one", "two")]
    with watch.fault(degraded=False):
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
def test_a_raising_error_listener_does_not_stop_recovery(watch, own_server, caplog):
    """Each exception of the listener is logged once, and the node connects and serves again."""
    node = watch.node()

    def listener(error):
        raise Boom(error)

    node.timer.on("error", listener)
    own_server.kill9()
    eventually(lambda: node.errors)
    eventually(lambda: not node.timer.health().ok)
    own_server.start()
    watch.assert_recovery()

    def logged():
        return [r for r in caplog.records if "a listener of 'error' raised" in r.getMessage()]

    # Another thread emits the errors, a moment later.
    eventually(lambda: len(logged()) == len(node.heard("error")))
    assert {Boom} == {r.exc_info[0] for r in caplog.records if r.exc_info}


@pytest.mark.fault("F76")
def test_heartbeats_keep_the_lease_of_a_long_handler(watch):
    """A handler that runs for three leases keeps its event, so no other node handles it."""
    node, handler, ev = watch.busy_node("one")
    other_node = watch.node("two")
    with watch.fault(degraded=False, recovers=False):
        first = watch.client.zscore(watch.keys.due, ev.id)
        more = 3 * PATIENT["lease"] * 1000
        eventually(lambda: watch.client.zscore(watch.keys.due, ev.id) > first + more)
        assert not ev.lease_lost
        handler.go_on(10_000)
    watch.assert_recovery()
    assert 1 == watch.times(ev.id)
    assert [] == node.heard("lease_lost") + other_node.heard("lease_lost")


@pytest.mark.fault("F77")
def test_an_event_moves_on_after_max_run(watch):
    """
    ``health()`` counts the handler thread as stuck, and the node's other thread keeps working. When
    the handler returns at last, the lost lease is reported.
    """
    hanging = Gated()

    def handler(ev):
        if "hang" in ev and ev.attempt == 1:
            hanging(ev)

    slow_node = watch.node("slow", handler=handler, max_run=100, concurrency=2)
    id = watch.post(more={"hang": True})
    (ev,) = hanging.begun()
    # Handled twice: by the node that receives it next, and by the handler that hung.
    watch.excused.add(id)
    other_node = watch.node("other")
    watch.wait_handled(id)
    assert [2] == [handled.attempt for handled in watch.handled]
    assert ev.lease_lost
    assert 1 == slow_node.timer.health().stuck
    while "slow" not in {handled.node for handled in watch.handled if handled.id != id}:
        watch.wait_handled(watch.post())
    hanging.go_on(10_000)
    eventually(lambda: slow_node.heard("lease_lost"))
    eventually(lambda: slow_node.timer.health().stuck == slow_node.timer.health().handlers == 0)
    assert [] == other_node.heard("lease_lost")
    assert 0 == other_node.timer.stats().dead


@pytest.mark.fault("F80")
def test_each_event_of_a_chain_of_re_posts_is_delivered_once(watch):
    """A handler posts the id of its own event again, and no event is lost or early."""
    links = []

    def handler(ev):
        if "link" in ev:
            links.append((ev["link"], ev.attempt))
            if ev["link"] < 200:
                one.timer.post({"link": ev["link"] + 1}, id=ev.id)

    # Each link has this id, so the id is delivered 200 times.
    watch.excused.add("chain")
    one = watch.node("one", handler=handler)
    watch.node("two", handler=handler)
    one.timer.post({"link": 1}, id="chain")
    eventually(lambda: len(links) >= 200)
    assert [(n, 1) for n in range(1, 201)] == links
    eventually(lambda: one.timer.peek("chain") is None)
    watch.assert_recovery()
    # Node two may report a lost lease: it did not post the replacement itself.
    assert [] == one.errors
    assert 200 <= one.timer.stats().totals["started"]


@pytest.mark.fault("F81")
def test_a_handler_may_cancel_and_move_other_events(watch):
    """A running event ends as usual. Moving an unknown id creates no event."""
    gate = Gated()
    results = queue.SimpleQueue()
    timer = watch.node("one").timer
    watch.node("two", handler=lambda ev: "wait" in ev and gate(ev))
    timer.remove_all_listeners("event")
    running = watch.post(more={"wait": True})
    gate.begun()

    def change(events):
        (ev,) = events
        if ev.id == "change":
            cancelled = [timer.cancel(id) for id in ("waiting", running, "nothing", ev.id)]
            moved = [timer.reschedule(id, 0) for id in ("moves", running, "nothing")]
            results.put((cancelled, moved))

    timer.post({}, LATER, id="waiting")
    timer.post({}, LATER, id="moves")
    timer.on("event", change)
    timer.post({}, id="change")
    cancelled, moved = results.get(timeout=PATIENCE)
    assert ["CANCELLED", "IN_FLIGHT", "NOT_FOUND", "IN_FLIGHT"] == [c.name for c in cancelled]
    assert [True, False, False] == moved
    eventually(lambda: timer.peek("moves") is None)
    gate.go_on(10_000)
    watch.wait_handled(running)
    eventually(lambda: timer.peek("change") is None)
    assert [None] * 2 == [timer.peek(id) for id in ("waiting", "nothing")]


@pytest.mark.fault("F82")
def test_only_one_of_many_settlements_takes_effect(watch):
    """Ten threads confirm while ten others retry. Only calls that got their result return True."""
    results: dict[str, list[bool]] = {"confirm": [], "retry": []}

    def settle(ev, n):
        if n < 10:
            results["confirm"].append(ev.confirm())
        else:
            results["retry"].append(ev.retry(LATER))

    node = watch.node(handler=lambda ev: together(20, lambda n: settle(ev, n)))
    id = watch.post()
    watch.wait_handled(id)
    assert [] == node.heard("error")
    record = node.timer.peek(id)
    if record is None:
        assert {"confirm": [True] * 10, "retry": [False] * 10} == results
    else:
        assert State.SCHEDULED is record.state
        assert (False, 1) == (any(results["confirm"]), sum(results["retry"]))
        assert "cancelled" == node.timer.cancel(id).value


@pytest.mark.fault("F83")
def test_a_backlog_waits_in_redis_in_due_order(watch):
    """A slow node holds one event for each handler thread. ``stats()`` shows how many wait."""
    handler = Gated()
    node = watch.node(handler=handler, concurrency=2)
    ids = [watch.post() for _ in range(300)]
    for _ in range(2):
        handler.begun()
    stats = node.timer.stats()
    assert (2, 298, 298) == (stats.in_flight, stats.scheduled, stats.overdue)
    assert stats.oldest_overdue_ms > 0
    assert 2 == node.timer.health().handlers
    assert 0 == handler.waiting
    assert len(node.timer._node._leases.held()) == 2
    handler.go_on(10_000)
    watch.wait_handled(*ids)
    order = [ids.index(handled.id) for handled in watch.handled]
    # Two handler threads may overtake each other, so two events may be out of order, never three.
    longest = [0] * len(order)
    for n, place in enumerate(order):
        longest[n] = 1 + max((longest[i] for i in range(n) if order[i] > place), default=0)
    assert max(longest) <= 2
