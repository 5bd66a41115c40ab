"""The catalogue, F01 to F18: the way between a node and its server fails."""

from __future__ import annotations

import pytest
from servers import eventually

pytestmark = pytest.mark.chaos


@pytest.mark.fault("F09")
def test_the_server_is_down(watch, own):
    """
    While connections are refused the node tries again, ever less often, for as long as it
    takes; when the server is back it serves in time, and no acknowledged post is lost.
    """
    node = watch.node()
    before = watch.post(500)
    with watch.fault():
        own.kill9()
        eventually(lambda: node.errors)
        eventually(lambda: not node.timer.health().ok)
        own.start()
    watch.wait_handled(before)
    assert 1 == len(node.heard("disconnected"))
