"""
Three engines without threads, run step by step in an order that a seed decides.

To repeat the seed that a failure names, or to try others:

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

from chaos.stepped import World, log_on_failure

pytestmark = pytest.mark.chaos

STEPS = 100
#: The number of seeds of one test. Each seed has its own namespace.
_EACH = 75


def _ranges():
    given = os.environ.get("DTIMER_TEST_SEEDS", "0-299")
    first, _, last = given.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    return [seeds[i : i + _EACH] for i in range(0, len(seeds), _EACH)]


def run(client, seed, steps=STEPS):
    """Run the steps of one seed; return the world, with its log and the faults that it counted."""
    ns = f"s-{uuid.uuid4().hex[:12]}"
    try:
        with World(client, ns, seed) as world, log_on_failure(world):
            for _ in range(steps):
                world.step()
            world.drain()
            assert_sound(client, world.keys)
            return world
    except BaseException as e:
        e.add_note(f"to repeat it: DTIMER_TEST_SEEDS={seed} pytest {__file__}")
        raise
    finally:
        clear(client, ns)


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
@pytest.mark.parametrize("seeds", _ranges(), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_the_guarantees_hold_in_any_order_of_steps(client, seeds):
    """
    Messages are lost, late or doubled, and processes are killed. `Truth` and `World.drain` in
    `chaos.stepped` assert the guarantees.
    """
    total = {}
    for seed in seeds:
        for what, n in run(client, seed).counts.items():
            total[what] = total.get(what, 0) + n
    if len(seeds) == _EACH:
        assert min(total.values()) > _EACH / 4, f"a fault hardly ever happened: {total}"


def test_the_same_seed_gives_the_same_run(client):
    """A failure must be repeatable from its seed alone."""
    first, second = run(client, 4_711), run(client, 4_711)
    assert first.log == second.log
    assert first.truth.ends == second.truth.ends
    assert first.truth.outcomes == second.truth.outcomes


def test_a_world_closes_all_its_connections(client):
    """
    A connection that is left to the garbage collector could make another test fail, because its
    socket may be finalized first.
    """
    known = connections(client)
    gc.disable()
    try:
        for seed in (1, 2, 3):
            assert "arrives late" in str(run(client, seed).log)
        eventually(lambda: not connections(client).keys() - known.keys())
    finally:
        gc.enable()
