"""Chance: what dtimer leaves to it is drawn from a source of its own."""

from __future__ import annotations

import contextlib
import os
import random

from proxy import Proxy
from servers import eventually

from dtimer import OutcomeUnknown, StoreError
from dtimer.model.jitter import between
from dtimer.testing import Catch


def test_the_users_generator_is_left_alone(make, tcp_server):
    """
    A node that polls, retries, loses its server and finds it again draws nothing from the
    random module: a user's seeded test gets the same numbers with it and without.
    """
    with Proxy(tcp_server) as proxy:
        node = make(url=proxy.url, poll_interval=20, timeout=300)
        plain = make("plain", url=proxy.url, max_retries=1)
        before = random.getstate()
        for one in (node, plain):
            retried, lost = Catch(one, "retry"), Catch(one, "error")
            down, up = Catch(one, "disconnected"), Catch(one, "connected")

            @one.on("event")
            def fail(events):
                raise ValueError("no")

            one.join()
            up.next()
            one.post({})
            retried.next()
            lost.next()
            proxy.refuse()
            proxy.cut()
            down.next()
            with contextlib.suppress(StoreError, OutcomeUnknown):
                one.post({})
            proxy.heal()
            up.next()
            eventually(lambda one=one: one.health().ok)
            one.leave(0)
        assert before == random.getstate()


def test_children_differ():
    """Children of one process do not draw alike, as they would from a generator they inherit."""
    reading, writing = os.pipe()
    for _ in range(2):
        if (child := os.fork()) == 0:
            os.write(writing, f"{between(0, 1)}\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert 2 == len(set(told.read().split()))


def test_within_its_bounds():
    """What is drawn lies between the bounds, and is not always the same."""
    drawn = {between(2.0, 3.0) for _ in range(100)}
    assert len(drawn) > 50
    assert all(2 <= number <= 3 for number in drawn)
