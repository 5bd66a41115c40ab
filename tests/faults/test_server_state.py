"""Faults F19, F21 to F24 and F29: the server dies, is wiped, freezes, is busy, or is loading."""

from __future__ import annotations

import queue
import threading

import pytest
import redis
from chaos.settings import PATIENT
from servers import PATIENCE, Server, eventually

from dtimer import DTimer, LeaseLost, OutcomeUnknown, StateRollback, StoreError
from faults.expectations import Watch
from faults.gated_handler import GatedHandler
from faults.haste import hurried

pytestmark = pytest.mark.chaos

# One command of an append-only file.
_SET = b"*3\r\n$3\r\nSET\r\n$6\r\nfiller\r\n$1\r\nx\r\n"


class EndlessScript:
    """
    An endless script on the server, run by another client in a thread.

    Args:
        busy: The time, in ms, after which the server replies BUSY and lets the script be killed.
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
        """Kill the script, as soon as the server permits it."""
        with self._own.client(socket_timeout=2 * PATIENCE) as client:
            client.script_kill()
        self._thread.join()
        self._client.close()


@pytest.mark.fault("F19")
def test_each_event_is_handled_once_after_a_restart_from_the_append_only_file(watch, own):
    """
    The file has every acknowledged write: running, overdue and future events. It does not have
    the scripts, which must be sent again.
    """
    handler = GatedHandler()
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
def test_nodes_register_again_and_report_lost_leases_after_a_wipe(watch, own, caller):
    """
    Each node registers with its next claim, and handles what is posted from then on. It reports
    the rollback, and a running event as a lost lease. Pending events are gone.
    """
    handler = GatedHandler()
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
def test_requests_repeated_during_a_freeze_take_effect_at_most_once(watch, own, caller, hasty):
    """
    A frozen server executes every request that it has received as soon as it runs again. So each
    attempt of a post or a claim arrives, and the server must recognise the repetitions.
    """
    handler = GatedHandler()
    node = watch.node(handler=handler)
    handler.go_on(1000)
    before = watch.post(100)
    with watch.fault() as fault:
        own.pause()
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty, id="perhaps")
        with pytest.raises(StoreError, match="could not be reached") as caught:
            # No connection could be made, so the call was not sent.
            watch.in_time(hasty.pause)
        assert not isinstance(caught.value, OutcomeUnknown)
        with pytest.raises(StoreError, match="could not be reached"):
            watch.in_time(hasty.peek, before)
        fault.felt(1.0)
        own.resume()
    assert not caller.resume(), "pause() failed definitely, yet the namespace is paused"
    assert watch.times("perhaps") <= 1
    watch.wait_handled(before)
    eventually(lambda: node.timer.stats().in_flight == 0)
    totals = node.timer.stats().totals
    assert len(watch.handled) == totals["started"] - totals["released"]


@pytest.mark.fault("F22")
def test_a_confirm_of_unknown_outcome_is_not_reported_as_a_lost_lease(watch, own):
    """
    The server executes the confirm after the freeze. When the handler then returns, the server no
    longer knows its lease, because of this node's own confirm.
    """
    said, going_on = queue.SimpleQueue(), threading.Event()

    def confirm(ev):
        if not ev.get("freeze"):
            said.put(ev.confirm())
            return
        own.pause()
        with hurried(node.timer), pytest.raises(StoreError) as caught:
            ev.confirm()
        said.put(caught.value)
        assert going_on.wait(PATIENCE)

    # The lease outlasts the freeze: otherwise a claim could run before the confirm afterwards.
    node = watch.node(handler=confirm, lease=6_000)
    # Load the script with an event before the freeze: an unknown script would not be executed.
    watch.post()
    assert said.get(timeout=PATIENCE)
    # Hold four connections at a time, so that more are open than the threads of the node hold. A
    # confirm that had to connect first would fail definitely.
    line = node.timer._store._scripts
    for asked in [line.start("peek", "nothing") for _ in range(4)]:
        asked.answer()
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
def test_a_post_delayed_beyond_its_deadline_takes_effect_at_most_once(watch, own, hasty):
    """
    A long command of another client blocks the server. Posts whose deadline passes meanwhile raise
    `OutcomeUnknown`. Other events are late and not lost.
    """
    node = watch.node()
    with watch.fault(degraded=False) as fault:
        # Longer than the deadlines, also on a busy machine.
        script = EndlessScript(own, busy=3_000)
        eventually(lambda: not node.timer.health().ok)
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty, id="perhaps")
        fault.felt(0.7)
        script.end()
    assert watch.times("perhaps") <= 1


@pytest.mark.fault("F24")
def test_a_post_fails_definitely_while_the_server_is_busy(watch, own, refused):
    """
    BUSY means that the server has not executed the call. The node reports it once, and renews the
    lease of a running handler as soon as the script has ended.
    """
    handler = GatedHandler()
    node = watch.node(handler=handler, lease=6_000)
    running = watch.post()
    (ev,) = handler.begun()
    with watch.fault() as fault:
        script = EndlessScript(own, busy=50)
        eventually(lambda: "BUSY" in str(node.timer.health().error))
        with pytest.raises(StoreError, match="BUSY") as caught:
            watch.in_time(watch.post, 0, refused)
        assert not isinstance(caught.value, OutcomeUnknown)
        fault.felt()
        assert not ev.lease_lost
        script.end()
        eventually(lambda: not node.timer.health().error)
        handler.go_on(1000)
    watch.wait_handled(running)
    assert [] == node.heard("lease_lost")


@pytest.mark.fault("F29")
def test_a_post_fails_definitely_while_the_server_is_loading():
    """
    A server that loads its data refuses every command. Nodes wait, and handle their events when it
    has loaded.
    """
    # A pause of 1 µs, which takes about 50 µs, at every second key. So loading lasts longer than
    # the deadline of the caller, and the server replies after every 1024 keys.
    args = ["--key-load-delay", "-2"]
    with Server(tcp=True, appendonly=True, args=args) as own, Watch(own, "chaos") as watch:
        node = watch.node()
        caller = DTimer("caller", own.url, ns=watch.ns, timeout=PATIENT["timeout"])
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
