"""Random numbers: dtimer draws them from its own source."""

from __future__ import annotations

import contextlib
import os
import random

from proxy import Proxy
from servers import eventually

from dtimer import OutcomeUnknown, StoreError
from dtimer.model.jitter import between
from dtimer.testing import Catch


def test_the_random_module_is_not_used(make, tcp_server):
    """
    A node that polls, retries, loses its server and finds it again draws nothing from the random
    module. A user's seeded test therefore gets the same numbers with dtimer and without it.
    """
    with Proxy(tcp_server) as proxy:
        node = make(url=proxy.url, poll_interval=20, timeout=300)
        plain = make("plain", url=proxy.url, max_retries=1)
        before = random.getstate()
        for timer in (node, plain):
            retried, error = Catch(timer, "retry"), Catch(timer, "error")
            down, up = Catch(timer, "disconnected"), Catch(timer, "connected")

            @timer.on("event")
            def fail(events):
                raise ValueError("no")

            timer.join()
            up.next()
            timer.post({})
            retried.next()
            error.next()
            proxy.refuse()
            proxy.cut()
            down.next()
            with contextlib.suppress(StoreError, OutcomeUnknown):
                timer.post({})
            proxy.heal()
            up.next()
            eventually(lambda timer=timer: timer.health().ok)
            timer.leave(0)
        assert before == random.getstate()


def test_forked_children_draw_different_numbers():
    """With an inherited generator they would draw the same."""
    reading, writing = os.pipe()
    for _ in range(2):
        if (child := os.fork()) == 0:
            os.write(writing, f"{between(0, 1)}\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as numbers:
        assert 2 == len(set(numbers.read().split()))


def test_numbers_are_random_and_within_the_bounds():
    """The numbers lie between the bounds and differ from each other."""
    drawn = {between(2.0, 3.0) for _ in range(100)}
    assert len(drawn) > 50
    assert all(2 <= number <= 3 for number in drawn)
