"""Another program publishes on the channels: any message is at most a wake."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import eventually

from dtimer.testing import Catch


@pytest.fixture
def node(make):
    """A joined node that hears wakes and handles events."""
    node = make(poll_interval=30_000, timeout=3_000)
    node.caught, node.errors = Catch(node, "event"), Catch(node, "error")
    node.join()
    eventually(lambda: node.health().ok)
    return node


def channels(client, namespace):
    """Return the channels that the nodes of a namespace are subscribed to."""
    names = client.pubsub_channels(f"dtimer:{{{namespace}}}:*")
    assert len(names) == 2
    return names


def assert_works(node):
    """Assert that the node is healthy and gets a posted event by a wake, not by a poll."""
    node.post({"n": 1}, 1)
    assert {"n": 1} == node.caught.next()[0]
    assert node.health().ok
    assert node.errors.empty()


class TestWakes:
    """Any bytes, large messages, and many messages."""

    @given(messages=st.lists(st.binary(max_size=200), min_size=1, max_size=10))
    @settings(
        max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_the_content_of_a_wake_is_ignored(self, node, client, namespace, messages):
        """A node ignores the content of a wake: no event is delivered early, and nothing fails."""
        node.post({"far": 1}, 3_600_000, id="far")
        for message in messages:
            for channel in channels(client, namespace):
                client.publish(channel, message)
        assert_works(node)
        assert "far" == node.peek("far").id
        assert node.caught.empty()

    def test_a_wake_of_megabytes_is_skipped(self, node, client, namespace):
        """A message of several megabytes has no effect."""
        for channel in channels(client, namespace):
            client.publish(channel, b"x" * 4_000_000)
        assert_works(node)

    def test_a_flood_of_wakes_causes_few_claims(self, node, client, namespace):
        """The node keeps up with its work under twenty thousand wakes at once."""
        first = node._node._seat.pipeline.seq
        with client.pipeline(transaction=False) as pipe:
            for channel in channels(client, namespace):
                for _ in range(10_000):
                    pipe.publish(channel, b"")
            pipe.execute()
        assert_works(node)
        assert node._node._seat.pipeline.seq - first < 10_000
