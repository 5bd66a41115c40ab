"""Faults F19, F22 to F24 and F29: the server dies, freezes, is busy, or is loading."""

from __future__ import annotations

import queue
import threading

import pytest
import redis
from chaos.settings import PATIENT
from servers import PATIENCE, Server, eventually

from dtimer import OutcomeUnknown, StoreError
from faults.calls import definite_failure, hurried
from faults.expectations import Watch

pytestmark = pytest.mark.chaos

# One command of an append-only file.
_SET = b"*3\r\n$3\r\nSET\r\n$6\r\nfiller\r\n$1\r\nx\r\n"


class EndlessScript:
    """An endless script on the server; after *busy* ms the server replies BUSY to others."""

    def __init__(self, own_server, busy):
        self._own = own_server
        self._client = own_server.client(socket_timeout=2 * PATIENCE)
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
def test_each_event_is_handled_once_after_a_restart_from_the_append_only_file(watch, own_server):
    """The file has every acknowledged write, but no scripts. No rollback may be reported."""
    node, handler, ev = watch.busy_node(concurrency=3, lease=6_000)
    ids = [watch.post(n) for n in (200, 400, 1_500)]
    with watch.fault() as fault:
        own_server.kill9()
        fault.felt()
        handler.go_on(1000)
        own_server.start()
    watch.wait_handled(ev.id, *ids)
    eventually(lambda: node.timer.stats().totals["confirmed"] == len(watch.posted))
    assert [] == node.heard("lease_lost") + node.rollbacks


@pytest.mark.fault("F22")
def test_requests_repeated_during_a_freeze_take_effect_at_most_once(
    watch, own_server, caller, hasty_caller
):
    """A frozen server executes each attempt that it has received when it runs again."""
    watch.node()
    before = watch.post(100)
    with watch.fault() as fault:
        own_server.pause()
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty_caller, id="perhaps")
        with definite_failure("could not be reached"):
            # No connection could be made, so the call was not sent.
            watch.in_time(hasty_caller.pause)
        with pytest.raises(StoreError, match="could not be reached"):
            watch.in_time(hasty_caller.peek, before)
        fault.felt(1.0)
        own_server.resume()
    assert not caller.resume(), "pause() failed definitely, yet the namespace is paused"
    assert watch.times("perhaps") <= 1
    watch.wait_handled(before)
    assert watch.claims() == len(watch.handled)


@pytest.mark.fault("F22")
def test_a_confirm_of_unknown_outcome_is_not_reported_as_a_lost_lease(watch, own_server):
    """The server no longer knows the lease, because of this node's own confirm."""
    results, going_on = queue.SimpleQueue(), threading.Event()

    def confirm(ev):
        if not ev.get("freeze"):
            results.put(ev.confirm())
            return
        own_server.pause()
        with hurried(node.timer), pytest.raises(StoreError) as caught:
            ev.confirm()
        results.put(caught.value)
        assert going_on.wait(PATIENCE)

    # The lease outlasts the freeze: otherwise a claim could run before the confirm afterwards.
    node = watch.node(handler=confirm, lease=6_000)
    # Load the script with an event before the freeze: an unknown script would not be executed.
    watch.post()
    assert results.get(timeout=PATIENCE)
    # Hold four connections at a time, so that more are open than the threads of the node hold. A
    # confirm that had to connect first would fail definitely.
    scripts = node.timer._store._scripts
    for call in [scripts.start("peek", "nothing") for _ in range(4)]:
        call.answer()
    with watch.fault() as fault:
        id = watch.post(more={"freeze": True})
        assert isinstance(results.get(timeout=PATIENCE), OutcomeUnknown)
        fault.felt()
        own_server.resume()
        eventually(lambda: watch.client.hget(watch.keys.lease, id) is None)
        going_on.set()
        watch.wait_handled(id)
    assert [] == node.heard("lease_lost")
    (error,) = node.errors
    assert "does not answer" in str(error)


@pytest.mark.fault("F23")
def test_a_post_delayed_beyond_its_deadline_takes_effect_at_most_once(
    watch, own_server, hasty_caller
):
    """A long command of another client blocks the server. Other events are late."""
    node = watch.node()
    with watch.fault(degraded=False) as fault:
        # Longer than the deadlines, also on a busy machine.
        script = EndlessScript(own_server, busy=3_000)
        eventually(lambda: not node.timer.health().ok)
        with pytest.raises(OutcomeUnknown):
            watch.in_time(watch.post, 0, hasty_caller, id="perhaps")
        fault.felt(0.7)
        script.end()
    assert watch.times("perhaps") <= 1


@pytest.mark.fault("F24")
def test_a_post_fails_definitely_while_the_server_is_busy(watch, own_server, refused_caller):
    """BUSY means that the server has not executed the call. Leases are renewed afterwards."""
    node, handler, ev = watch.busy_node(lease=6_000)
    with watch.fault() as fault:
        script = EndlessScript(own_server, busy=50)
        eventually(lambda: "BUSY" in str(node.timer.health().error))
        with definite_failure("BUSY"):
            watch.in_time(watch.post, 0, refused_caller)
        fault.felt()
        assert not ev.lease_lost
        script.end()
        eventually(lambda: not node.timer.health().error)
        handler.go_on(1000)
    watch.wait_handled(ev.id)
    assert [] == node.heard("lease_lost")


@pytest.mark.fault("F29")
def test_a_post_fails_definitely_while_the_server_is_loading():
    """Such a server refuses every command. Nodes wait, and handle their events afterwards."""
    # A pause of 1 µs, which takes about 50 µs, at every second key. So loading lasts longer than
    # the deadline of the caller, and the server replies after every 1024 keys.
    args = ["--key-load-delay", "-2"]
    with (
        Server(tcp=True, appendonly=True, args=args) as own_server,
        Watch(own_server, "chaos") as watch,
    ):
        node = watch.node()
        caller = watch.caller(timeout=PATIENT["timeout"])
        before = watch.post(500)
        with watch.fault() as fault:
            own_server.kill9()
            (log,) = own_server.folder.glob("appendonlydir/*.incr.aof")
            with log.open("ab") as file:
                file.write(_SET * 300_000)
            own_server.start(wait=False)
            eventually(lambda: "loading" in str(node.timer.health().error))
            with definite_failure("loading"):
                watch.in_time(watch.post, 0, caller)
            fault.felt()
            watch.client.config_set("key-load-delay", 0)
            eventually(lambda: not watch.client.info("persistence")["loading"])
        watch.wait_handled(before)
        watch.client.delete("filler")
