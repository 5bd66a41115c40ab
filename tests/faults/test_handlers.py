"""The catalogue, F74 to F84: what handlers do, and what becomes of their events then."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from chaos.settings import PATIENT
from servers import PATIENCE, eventually

from dtimer import Cancelled, HandlerError, State
from faults.held import Held

pytestmark = pytest.mark.chaos

LATER = 3_600_000  # ms; no test is there to see it


class Boom(Exception):
    """What the handlers here raise."""


@pytest.mark.fault("F74")
def test_handlers_that_raise(watch):
    """
    Of forty events every other fails twice. Each of these is told of twice, by name, with its
    attempt, and handled the third time; the others are handled once, and nobody waits for them.
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
    told = Counter((error.event.id, error.event.attempt) for error in errors)
    bad = [id for id in ids if watch.posted[id]["bad"]]
    assert {(id, attempt): 1 for id in bad for attempt in (1, 2)} == told
    assert all(str(error.__cause__) == error.event.id for error in errors)
    attempts = {handled.id: handled.attempt for handled in watch.handled if handled.id in ids}
    assert {id: 3 if id in bad else 1 for id in ids} == attempts


@pytest.mark.fault("F75")
def test_an_error_listener_that_raises_in_an_outage(watch, own, caplog):
    """
    A listener of 'error' that raises, in the thread of a node that has lost its server, is
    logged once for each error, and keeps the node neither from its work nor from coming back.
    """
    node = watch.node()

    def listener(error):
        raise Boom(error)

    node.timer.on("error", listener)
    own.kill9()
    eventually(lambda: node.errors)
    eventually(lambda: not node.timer.health().ok)
    own.start()
    watch.recovered()
    # Said by another thread, a moment later.
    eventually(
        lambda: (
            len([r for r in caplog.records if "a listener of 'error' raised" in r.getMessage()])
            == len(node.heard("error"))
        )
    )
    assert {Boom} == {r.exc_info[0] for r in caplog.records if r.exc_info}


@pytest.mark.fault("F76")
def test_longer_than_the_lease(watch):
    """A handler that takes three times its lease keeps its event, and loses nothing by it."""
    held = Held()
    nodes = [watch.node("one", handler=held), watch.node("two")]
    id = watch.post()
    (ev,) = held.begun()
    with watch.fault(degraded=False, recovers=False):
        first = watch.client.zscore(watch.keys.due, id)
        more = 3 * PATIENT["lease"] * 1000
        eventually(lambda: watch.client.zscore(watch.keys.due, id) > first + more)
        assert not ev.lease_lost
        held.go_on(10_000)
    watch.recovered()
    assert 1 == watch.times(id)
    assert [] == [node for node in nodes if node.heard("lease_lost")]


@pytest.mark.fault("F77")
def test_a_handler_that_hangs(watch):
    """
    Past max_run a handler's heartbeats end: the event is handed to another node, health() counts
    the hand as stuck, and the other hand of the node serves on. A handler that comes back in the
    end is told that its lease was lost, and its hand is free again.
    """
    held = Held()

    def handler(ev):
        if "hang" in ev and ev.attempt == 1:
            held(ev)

    slow = watch.node("slow", handler=handler, max_run=100, concurrency=2)
    id = watch.post(more={"hang": True})
    (ev,) = held.begun()
    # It is handled twice: by whoever is handed it next, and by the one that comes back.
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
def test_a_node_without_a_handler(watch):
    """
    A joined node that has no handler leaves events to those that have, is no reason for any to
    be late, and says that it is well.
    """
    mute = watch.node("mute")
    mute.timer.remove_all_listeners("event")
    # It says so once, and has nothing else to say.
    eventually(lambda: any("no listener" in line for line in watch.gauges.lines))
    watch.node("other")
    ids = [watch.post() for _ in range(30)]
    with watch.fault(degraded=False):
        watch.wait_handled(*ids)
    assert {"other"} == {handled.node for handled in watch.handled}
    assert mute.timer.health().ok


@pytest.mark.fault("F79")
def test_one_of_several_listeners_fails(watch):
    """
    All listeners are called though one raises; the event has failed, and all of them are called
    again with its next attempt.
    """
    node = watch.node()
    seen = []
    node.timer.on("event", lambda events: events[0].attempt == 1 and 1 / 0)
    node.timer.on("event", lambda events: seen.append(events[0].attempt))
    id = watch.post()
    # The watch's own listener is called on both.
    watch.excused.add(id)
    eventually(lambda: node.timer.stats().totals.get("confirmed") == 1)
    assert [1, 2] == [handled.attempt for handled in watch.handled] == seen
    (error,) = node.heard("error")
    assert isinstance(error.__cause__, ZeroDivisionError)


@pytest.mark.fault("F80")
def test_a_chain_of_re_posts(watch):
    """
    A handler that posts its own id anew and returns makes a chain of two hundred links: each is
    handed out once, in order, by whichever node, and nobody is told of a lost lease.
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
    watch.recovered()
    # A node that had no part in the posting would be told.
    assert [] == nodes[0].errors
    assert 200 <= nodes[0].timer.stats().totals["started"]


@pytest.mark.fault("F81")
def test_a_handler_that_changes_others(watch):
    """
    A handler may cancel and move other events: what waits is cancelled or moved, what another
    has in hand says so and ends as it would, and what is not there is not made.
    """
    held = Held()
    told = {}
    node = watch.node("one")
    watch.node("two", handler=lambda ev: "hold" in ev and held(ev))
    node.timer.remove_all_listeners("event")
    running = watch.post(more={"hold": True})
    held.begun()

    def change(events):
        timer = node.timer
        if events[0].id != "change":
            return
        told["cancel waiting"] = timer.cancel("waiting")
        told["move waiting"] = timer.reschedule("other", 0)
        told["cancel running"] = timer.cancel(running)
        told["move running"] = timer.reschedule(running, LATER)
        told["cancel nothing"] = timer.cancel("nothing")
        told["move nothing"] = timer.reschedule("nothing", 0)
        told["itself"] = timer.cancel(events[0].id)

    node.timer.post({}, LATER, id="waiting")
    node.timer.post({}, LATER, id="other")
    node.timer.on("event", change)
    node.timer.post({}, id="change")
    eventually(lambda: "itself" in told)
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
    } == told
    assert [None] * 4 == [node.timer.peek(id) for id in ("waiting", "other", "change", "nothing")]


@pytest.mark.fault("F82")
def test_settled_by_many_at_once(watch):
    """
    Ten threads confirm one event, and ten give it back for a retry: it ends in one of these
    ways, all who asked for that are told so, the others are told no, and nobody gets an error.
    """
    told: dict[str, list[bool]] = {"confirm": [], "retry": []}
    raised = []

    def settle(ev, how, start):
        start.wait(PATIENCE)
        try:
            told[how].append(ev.confirm() if how == "confirm" else ev.retry(LATER))
        except Exception as e:
            raised.append(e)

    def handler(ev):
        start = threading.Barrier(20)
        crew = [
            threading.Thread(target=settle, args=(ev, how, start))
            for how in ("confirm", "retry")
            for _ in range(10)
        ]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join(PATIENCE)

    node = watch.node(handler=handler)
    id = watch.post()
    watch.wait_handled(id)
    assert [] == raised
    record = node.timer.peek(id)
    if record is None:
        assert {"confirm": [True] * 10, "retry": [False] * 10} == told
    else:
        assert State.SCHEDULED is record.state
        assert (False, 1) == (any(told["confirm"]), sum(told["retry"]))
        assert "cancelled" == node.timer.cancel(id).value


@pytest.mark.fault("F83")
def test_slower_than_posts(watch):
    """
    Handlers that are slower than posts hold no more than they have hands; the rest waits in
    Redis, where stats() shows how much and for how long, and comes in the order of its due times.
    """
    held = Held()
    node = watch.node(handler=held, concurrency=2)
    ids = [watch.post() for _ in range(300)]
    for _ in range(2):
        held.begun()
    stats = node.timer.stats()
    assert (2, 298, 298) == (stats.in_flight, stats.scheduled, stats.overdue)
    assert stats.oldest_overdue_ms > 0
    assert 2 == node.timer.health().handlers
    assert 0 == held.waiting
    assert len(node.timer._life._dispatcher.held()) == 2
    held.go_on(10_000)
    watch.wait_handled(*ids)
    order = [ids.index(handled.id) for handled in watch.handled]
    # Two hands may pass each other, each of which goes forwards: so no three go backwards.
    passed = [0] * len(order)
    for n, place in enumerate(order):
        passed[n] = 1 + max((passed[i] for i in range(n) if order[i] > place), default=0)
    assert max(passed) <= 2


@pytest.mark.fault("F84")
def test_a_payload_that_is_changed(watch):
    """What one attempt does to its payload, on whichever node, the next does not see."""

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
