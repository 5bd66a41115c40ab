"""Faults F30 and F33 to F36: the server replies, and refuses to execute the command."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from pathlib import Path

import pytest
import redis
from chaos.settings import PATIENT
from chaos.tapped import Lost, TappedSource
from gated import Gated
from proxy import Proxy
from servers import LATER, LONGEST_CALL, PATIENCE, eventually

from dtimer import DTimer, OutcomeUnknown
from dtimer.faultpoints import arm
from dtimer.store.format import Entry
from dtimer.store.store import Store
from faults.calls import definite_failure

pytestmark = pytest.mark.chaos


@pytest.mark.fault("F30")
def test_only_posts_fail_when_memory_is_full(watch, caller):
    """All other work goes on, because it frees the memory. The post stores nothing."""
    failed = []

    def fail_once(ev):
        if ev.get("fail") and ev.id not in failed:
            failed.append(ev.id)
            raise RuntimeError("as the test says")

    gate = Gated()
    node = watch.node(handler=lambda ev: gate(ev) if ev.get("hold") else fail_once(ev))
    long = watch.post(more={"hold": True})
    (ev,) = gate.begun()
    pending = [watch.post(100), watch.post(100, more={"fail": True})]
    cancelled = watch.post(LATER)
    # The first is never delivered. The handler of the second fails once, so it is delivered twice.
    watch.excused |= {cancelled, pending[1]}
    with watch.fault(degraded=False):
        watch.client.config_set("maxmemory", 1)
        for _ in range(3):
            with definite_failure("out of memory"):
                watch.in_time(watch.post, 0, caller, id="refused")
        assert caller.peek("refused") is None
        assert caller.cancel(cancelled)
        late_node = watch.node("late")
        watch.wait_handled(*pending)
        # Wait for the length of two leases: without renewals the first would have ended.
        eventually(lambda: node.timer.stats().totals["confirmed"] >= 2)
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 2 * PATIENT["lease"] / 1000)
        assert not ev.lease_lost
        gate.go_on(100)
        watch.wait_handled(long)
        eventually(lambda: caller.stats().in_flight == 0)
        assert [True, True] == [n.timer.health().ok for n in (node, late_node)]
        assert [] == node.errors + late_node.errors
        watch.client.config_set("maxmemory", 0)
    assert [] == node.heard("lease_lost") + node.heard("disconnected")


@contextlib.contextmanager
def _not_persisting(own_server, client):
    """Refuse writes as after a failed snapshot: its process is killed."""
    client.config_set("save", "3600 1")
    client.config_set("rdb-key-save-delay", 10_000_000)
    client.set("filler", "x")
    client.bgsave()
    children = Path(f"/proc/{own_server.pid}/task/{own_server.pid}/children")
    eventually(children.read_text)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    client.config_set("rdb-key-save-delay", 0)
    client.bgsave()
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")
    client.delete("filler")


@contextlib.contextmanager
def _demoted(own_server, client):
    client.replicaof("127.0.0.1", 1)
    yield
    client.replicaof("NO", "ONE")


@contextlib.contextmanager
def _orphaned(own_server, client):
    client.config_set("replica-serve-stale-data", "no")
    with _demoted(own_server, client):
        yield
    client.config_set("replica-serve-stale-data", "yes")


@contextlib.contextmanager
def _without_replicas(own_server, client):
    client.config_set("min-replicas-to-write", 1)
    yield
    client.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize(
    ("refusing", "words"),
    [
        pytest.param(_not_persisting, "MISCONF", marks=pytest.mark.fault("F33")),
        pytest.param(_demoted, "read only replica", marks=pytest.mark.fault("F34")),
        pytest.param(_orphaned, "Link with MASTER is down", marks=pytest.mark.fault("F35")),
        pytest.param(_without_replicas, "NOREPLICAS", marks=pytest.mark.fault("F36")),
    ],
)
def test_a_post_fails_with_the_words_of_a_server_that_refuses_writes(
    watch, own_server, caller, refused_caller, *, refusing, words
):
    """Nothing was stored. A handler that ends meanwhile is confirmed later."""
    node, handler, ev = watch.busy_node(lease=6_000, max_events=1)
    pending = watch.post(200)
    with watch.fault() as fault, refusing(own_server, watch.client):
        with definite_failure(words):
            watch.in_time(watch.post, 0, refused_caller, id="refused")
        tries = watch.gauges.connects
        fault.felt()
        assert words in str(node.timer.health().error)
        handler.go_on(1000)
        if refusing in (_demoted, _orphaned):
            # The address may lead to a new master: the node must connect again.
            eventually(lambda: watch.gauges.connects > tries)
    assert caller.peek("refused") is None
    watch.wait_handled(ev.id, pending)
    eventually(lambda: caller.stats().in_flight == 0)
    assert [] == node.heard("lease_lost")


class TestAfterALostReply:
    """A call whose first reply was lost and whose second attempt is refused."""

    @pytest.mark.fault("F36")
    def test_the_outcome_of_a_stored_post_is_unknown(self, own_server, namespace):
        """If the refusal of the second attempt counted as definite, the caller would post again."""
        with Proxy(own_server) as proxy, own_server.client() as client:
            timer = DTimer("poster", proxy.url, ns=namespace, timeout=LONGEST_CALL)
            timer.post({"n": 0}, LATER, id="known")
            proxy.drop_reply_once(b"tea")
            refuse = functools.partial(client.config_set, "min-replicas-to-write", 1)
            with arm("retry.sending", refuse), pytest.raises(OutcomeUnknown, match="NOREPLICAS"):
                timer.post({"n": 1}, LATER, id="tea")
            assert {"n": 1} == timer.peek("tea").event
            timer.leave()

    @pytest.mark.parametrize(
        "refusal",
        [
            "NOREPLICAS Not enough good replicas to write.",
            "MISCONF Redis is configured to save RDB snapshots",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "DTCORRUPT the key due holds a string, not a zset",
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "DTSTALE a later operation of this session has been done",
            "ERR anything else",
        ],
        ids=lambda text: text.split()[0],
    )
    def test_no_refusal_is_definite(self, server, namespace, refusal):
        """The first attempt took effect, so the caller must not be told that the call failed."""
        tries = []

        def tap(script, arguments, send):
            if script.name != "post":
                return send(arguments)
            tries.append(script.name)
            if len(tries) > 1:
                raise redis.ResponseError(refusal)
            send(arguments)
            raise Lost

        with server.client() as client:
            source = TappedSource(client, tap, loads=True)
            store = Store(source, namespace, timeout=PATIENCE)
            with pytest.raises(OutcomeUnknown, match=refusal.split()[0]):
                store.post([Entry("tea", "+60000000", ",3|{}")], "replace")
            assert store.peek("tea")
            store.release()
        assert 2 == len(tries)
