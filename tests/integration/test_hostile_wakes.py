"""Somebody else publishes on our channels: whatever it says, nobody acts on more than that."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import eventually

from dtimer.testing import Catch


@pytest.fixture
def node(make):
    """A joined node that hears, and handles what it is handed."""
    node = make(poll_interval=30_000, timeout=3_000)
    node.caught, node.errors = Catch(node, "event"), Catch(node, "error")
    node.join()
    eventually(lambda: node.health().ok)
    return node


def channels(client, namespace):
    """The channels that the nodes of a namespace listen to."""
    found = client.pubsub_channels(f"dtimer:{{{namespace}}}:*")
    assert len(found) == 2
    return found


def works(node):
    """Assert that the node is well, and handed what is posted, by a wake and not by a poll."""
    node.post({"n": 1}, 1)
    assert {"n": 1} == node.caught.next()[0]
    assert node.health().ok
    assert node.errors.empty()


class TestWakes:
    """Any bytes, large ones, and many."""

    @given(said=st.lists(st.binary(max_size=200), min_size=1, max_size=10))
    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_any_bytes(self, node, client, namespace, said):
        """What a wake says is not looked at: nothing is handed out early, nothing breaks."""
        node.post({"far": 1}, 3_600_000, id="far")
        for message in said:
            for channel in channels(client, namespace):
                client.publish(channel, message)
        works(node)
        assert "far" == node.peek("far").id
        assert node.caught.empty()

    def test_a_large_one(self, node, client, namespace):
        """Megabytes are read past."""
        for channel in channels(client, namespace):
            client.publish(channel, b"x" * 4_000_000)
        works(node)

    def test_a_flood(self, node, client, namespace):
        """
        Twenty thousand wakes at once are far fewer looks for work, and the node keeps up with
        what it has to do.
        """
        before = node._life._claimer._exchange._seq
        with client.pipeline(transaction=False) as pipe:
            for channel in channels(client, namespace):
                for _ in range(10_000):
                    pipe.publish(channel, b"")
            pipe.execute()
        works(node)
        assert node._life._claimer._exchange._seq - before < 10_000
