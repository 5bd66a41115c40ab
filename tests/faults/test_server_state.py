"""The catalogue, F19, F21 to F24 and F29: the server dies, freezes, is busy, forgets, loads."""

from __future__ import annotations

import queue
import threading

import pytest
import redis
from chaos.settings import HASTY
from servers import PATIENCE, Server, eventually

from dtimer import DTimer, LeaseLost, OutcomeUnknown, StateRollback, StoreError
from faults.expectations import Watch
from faults.held import Held

pytestmark = pytest.mark.chaos

# One command of an append-only file.
_SET = b"*3\r\n$3\r\nSET\r\n$6\r\nfiller\r\n$1\r\nx\r\n"


class Foreign:
    """
    A foreign client that has the server run a script without an end; in a thread.

    Args:
        busy: After so many ms the server says that it is BUSY, and a script can be killed.
    """

    def __init__(self, own, busy):
        self._own = own
        self._client = own.client(socket_timeout=2 * PATIENCE)
        self._client.config_set("busy-reply-threshold", busy)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        with pytest.raises(redis.ResponseError, match=r"(?i)kill"):
            self._client.eval("while true do end", 0)

    def end(self):
        """Kill the script, as soon as the server lets anybody do so."""
        with self._own.client(socket_timeout=2 * PATIENCE) as client:
            client.script_kill()
        self._thread.join()
        self._client.close()


@pytest.mark.fault("F19")
def test_killed_and_restarted(watch, own):
    """
    A server that is killed and comes back from its append-only file has lost nothing that
    was acknowledged: events that were due meanwhile, that are due later, and that were in
    hand arrive once. It has lost the scripts, which are sent along again.
    """
    handler = Held()
    node = watch.node(handler=handler, concurrency=3, lease=6_000)
    running = watch.post()
    handler.begun()
    ids = [watch.post(n) for n in (200, 400, 1_500)]
    with watch.fault() as fault:
        own.kill9()
        fault.felt()
        handler.go_on(1000)
        own.start()
    watch.wait_handled(running, *ids)
    eventually(lambda: node.timer.stats().totals["confirmed"] == len(watch.posted))
    assert [] == node.heard("lease_lost")


@pytest.mark.fault("F21")
def test_everything_is_wiped(watch, own, caller):
    """
    Nodes whose server has forgotten everything register again with their next turn, and
    are on duty for what is posted from then on. Each tells of the rollback. Events that
    were in hand are lost leases, and told as such; what was pending is gone.
    """
    handler = Held()
    node = watch.node(handler=handler, concurrency=2)
    id, gone = watch.post(), watch.post(600_000)
    (ev,) = handler.begun()
    watch.excused |= {id, gone}
    other = watch.node("other")
    with watch.fault(degraded=False):
        watch.client.flushall()
        eventually(lambda: len(watch.client.hvals(watch.keys.nodes)) == 2)
        eventually(lambda: ev.lease_lost)
        handler.go_on(1000)
        eventually(lambda: node.heard("lease_lost"))
        assert ["node", "other"] == sorted(n.id for n in caller.nodes())
    assert [id] == [ev.id for ev in node.heard("lease_lost")]
    for each in (node, other):
        told = [type(e) for e in each.errors if not isinstance(e, LeaseLost)]
        assert [StateRollback] == told
    assert 0 == watch.times(gone)


@pytest.mark.fault("F22")
def test_frozen(watch, own, caller, hasty):
    """
    A frozen server keeps what it is sent, and does it all when it goes on. So calls whose
    outcome is unknown are done once or not at all, however often they were tried, and the
    turns that a node has asked for again and again are one turn.
    """
    handler = Held()
    node = watch.node(handler=handler, **HASTY)
    handler.go_on(1000)
    before = watch.post(100)
    with watch.fault() as fault:
        own.pause()
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty, id="perhaps")
        with pytest.raises(StoreError, match="could not be reached") as caught:
            # On a connection that could not be made: it was not sent.
            watch.in_time(hasty.pause)
        assert not isinstance(caught.value, OutcomeUnknown)
        with pytest.raises(StoreError, match="could not be reached"):
            watch.in_time(hasty.peek, before)
        fault.felt(1.0)
        own.resume()
    assert not caller.resume(), "it was said that it had not been paused"
    assert watch.times("perhaps") <= 1
    watch.wait_handled(before)
    eventually(lambda: node.timer.stats().in_flight == 0)
    assert len(watch.handled) == node.timer.stats().totals["started"]


@pytest.mark.fault("F22")
def test_frozen_under_a_confirm(watch, own):
    """
    A confirm whose outcome is unknown, and which was done, is no lost lease: when the
    handler returns, or asks for a heartbeat, nobody is told that somebody else has it.
    """
    said, going_on = queue.SimpleQueue(), threading.Event()

    def confirm(ev):
        if ev.get("freeze"):
            own.pause()
        try:
            said.put(ev.confirm())
        except StoreError as e:
            said.put(e)
            assert going_on.wait(PATIENCE)

    node = watch.node(handler=confirm, **HASTY)
    # The script is there now: without it, what is done after the freeze would be nothing.
    watch.post()
    assert said.get(timeout=PATIENCE)
    # Whichever connection the confirm takes is there, too: one that would have to be made first
    # could not be, and then the confirm is known not to have been done.
    line = node.timer._store._line
    for lane in [line._take() for _ in range(4)]:
        line._idle.append(lane)
        node.timer.peek("nothing")
    with watch.fault() as fault:
        id = watch.post(more={"freeze": True})
        assert isinstance(said.get(timeout=PATIENCE), OutcomeUnknown)
        fault.felt()
        own.resume()
        eventually(lambda: watch.client.hget(watch.keys.lease, id) is None)
        going_on.set()
        watch.wait_handled(id)
    assert [] == node.heard("lease_lost")
    (error,) = node.errors
    assert "does not answer" in str(error)


@pytest.mark.fault("F23")
def test_blocked(watch, own, hasty):
    """
    A command of somebody else's that takes long is a freeze that ends: posts that it
    delays beyond their deadline are done once, later events are late and not lost.
    """
    node = watch.node(**HASTY)
    with watch.fault(degraded=False) as fault:
        # Longer than the deadlines, and than a machine is busy with something else.
        foreign = Foreign(own, busy=3_000)
        eventually(lambda: not node.timer.health().ok)
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty, id="perhaps")
        fault.felt(0.7)
        foreign.end()
    assert watch.times("perhaps") <= 1


@pytest.mark.fault("F24")
def test_busy(watch, own, hasty):
    """
    While the server is BUSY calls fail definitely and within their deadline, the node says
    so once, and the lease of what runs is renewed as soon as it may be.
    """
    handler = Held()
    node = watch.node(handler=handler, lease=6_000)
    running = watch.post()
    (ev,) = handler.begun()
    with watch.fault() as fault:
        foreign = Foreign(own, busy=50)
        eventually(lambda: "BUSY" in str(node.timer.health().error))
        with pytest.raises(StoreError, match="BUSY") as caught:
            watch.in_time(watch.post, 0, hasty)
        assert not isinstance(caught.value, OutcomeUnknown)
        fault.felt()
        assert not ev.lease_lost
        foreign.end()
        eventually(lambda: not node.timer.health().error)
        handler.go_on(1000)
    watch.wait_handled(running)
    assert [] == node.heard("lease_lost")


@pytest.mark.fault("F29")
def test_loading():
    """
    A server that is loading its data executes nothing, and says so: posts fail definitely,
    nodes wait, and are served when it has loaded.
    """
    # One microsecond, which takes fifty, at each of so many keys.
    args = ["--key-load-delay", "-10"]
    with Server(tcp=True, appendonly=True, args=args) as own, Watch(own, "chaos") as watch:
        node = watch.node()
        caller = DTimer("caller", own.url, ns=watch.ns, **HASTY)
        before = watch.post(500)
        with watch.fault() as fault:
            own.kill9()
            (log,) = own.folder.glob("appendonlydir/*.incr.aof")
            with log.open("ab") as file:
                file.write(_SET * 300_000)
            own.start(wait=False)
            eventually(lambda: "loading" in str(node.timer.health().error))
            with pytest.raises(StoreError, match="loading") as caught:
                watch.in_time(watch.post, 0, caller)
            assert not isinstance(caught.value, OutcomeUnknown)
            fault.felt()
            watch.client.config_set("key-load-delay", 0)
            eventually(lambda: not watch.client.info("persistence")["loading"])
        watch.wait_handled(before)
        watch.client.delete("filler")
        caller.leave()
