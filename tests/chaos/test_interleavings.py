"""
Three engines without threads, step by step, in as many orders as there are seeds.

Again, with the seed that a failure names, and with others:

    DTIMER_TEST_SEEDS=17 pytest tests/chaos/test_interleavings.py
    DTIMER_TEST_SEEDS=0-5000 pytest tests/chaos/test_interleavings.py
"""

from __future__ import annotations

import gc
import os
import uuid

import pytest
from leftovers import connections
from servers import LIMIT, clear, eventually
from soundness import assert_sound

from chaos.stepped import World, told

pytestmark = pytest.mark.chaos

STEPS = 100
#: So many seeds a test; each has a namespace of its own.
_EACH = 75


def _ranges():
    given = os.environ.get("DTIMER_TEST_SEEDS", "0-299")
    first, _, last = given.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    return [seeds[i : i + _EACH] for i in range(0, len(seeds), _EACH)]


def run(client, seed, steps=STEPS):
    """Live through one seed, and return what went wrong on the way."""
    ns = f"s-{uuid.uuid4().hex[:12]}"
    try:
        with World(client, ns, seed) as world, told(world):
            for _ in range(steps):
                world.step()
            world.drain()
            assert_sound(client, world.keys)
            return world
    except BaseException as e:
        e.add_note(f"again: DTIMER_TEST_SEEDS={seed} pytest {__file__}")
        raise
    finally:
        clear(client, ns)


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
@pytest.mark.parametrize("seeds", _ranges(), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_whatever_the_order(client, seeds):
    """
    Whatever the order of steps, and whatever is lost, late, doubled or killed on the way:
    nothing is claimed early, from its holder, or too often; no claim is started twice; what
    is confirmed was handled; and every acknowledged post comes to its end.
    """
    total = {}
    for seed in seeds:
        for what, n in run(client, seed).counts.items():
            total[what] = total.get(what, 0) + n
    if len(seeds) == _EACH:
        assert min(total.values()) > _EACH / 4, f"some fault hardly ever happened: {total}"


def test_a_seed_says_it_all(client):
    """The same seed takes the same steps, to the same end."""
    first, second = run(client, 4_711), run(client, 4_711)
    assert first.log == second.log
    assert first.truth.ends == second.truth.ends
    assert first.truth.outcomes == second.truth.outcomes


def test_no_connection_is_left_to_the_collector(client):
    """
    A world ends the connections that were made in it, also those of requests that come after
    their senders have died. Which of the collector's finalizers comes first is chance, and
    the socket's would fail another test.
    """
    known = connections(client)
    gc.disable()
    try:
        for seed in range(3):
            assert "arrives late" in str(run(client, seed).log)
        eventually(lambda: not connections(client).keys() - known.keys())
    finally:
        gc.enable()
