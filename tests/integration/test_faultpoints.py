"""The fault points of real nodes: each is reached, on the thread that the list names."""

from __future__ import annotations

import threading

from gated import Gated
from proxy import Proxy
from servers import eventually

from dtimer import faultpoints


def test_every_fault_point_is_reached(make, tcp_server):
    """
    A node joins, loses a reply, handles an event during two heartbeats, confirms it in its handler
    and leaves. On the way it reaches every fault point.
    """
    thread_at = {}

    def watch(point):
        faultpoints.armed[point] = lambda: thread_at.setdefault(
            point, threading.current_thread().name
        )

    for point in faultpoints.POINTS:
        watch(point)
    try:
        with Proxy(tcp_server) as proxy:
            timer = make("node", proxy.url, lease=900, poll_interval=50, timeout=3_000)
            gate = Gated(timer, then=lambda events: events[0].confirm())
            timer.join()
            proxy.drop_reply_once(b"stay")
            # With a generated id: a chosen id may be released once, by the claimer.
            timer.post({"stay": 1})
            gate.begun()
            eventually(lambda: "heartbeat.sending" in thread_at)
            gate.go_on()
            gate.ended()
            eventually(lambda: {"claim.handed", "handler.after"} <= set(thread_at))
            timer.leave()
    finally:
        faultpoints.armed.clear()
    assert set(faultpoints.POINTS) == set(thread_at)
    threads = {point: name.split("-")[1] for point, name in thread_at.items() if "-" in name}
    claimer = {"claim.asking", "claim.answered", "claim.handed"}
    claimer |= {"heartbeat.sending", "loop.claimer"}
    handler = {"handler.before", "handler.after", "settle.sending", "loop.handler"}
    assert {"claimer"} == {threads[point] for point in claimer}
    assert {"dtimer-node-handler-1"} == {thread_at[point] for point in handler}
    assert ["listener"] * 2 == [threads["loop.listener"], threads["listener.subscribed"]]
    assert "callbacks" == threads["loop.callbacks"]
