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
from proxy import Proxy
from servers import LATER, LONGEST_CALL, PATIENCE, eventually

from dtimer import DTimer, OutcomeUnknown, StoreError
from dtimer.faultpoints import arm
from dtimer.store.store import Entry, Store
from faults.gated_handler import GatedHandler

pytestmark = pytest.mark.chaos


@pytest.mark.fault("F30")
def test_only_posts_fail_when_memory_is_full(watch, own, caller):
    """
    A post fails definitely and stores nothing. Pending events are still claimed, confirmed,
    retried and cancelled, leases are renewed, and a node can join: that frees the memory.
    """
    failed = []

    def fail_once(ev):
        if ev.get("fail") and ev.id not in failed:
            failed.append(ev.id)
            raise RuntimeError("as the test says")

    held = GatedHandler()
    node = watch.node(handler=lambda ev: held(ev) if ev.get("hold") else fail_once(ev))
    long = watch.post(more={"hold": True})
    (ev,) = held.begun()
    pending = [watch.post(100), watch.post(100, more={"fail": True})]
    cancelled = watch.post(LATER)
    watch.excused |= {cancelled, pending[1]}
    with watch.fault(degraded=False):
        watch.client.config_set("maxmemory", 1)
        for _ in range(3):
            with pytest.raises(StoreError, match="out of memory") as caught:
                watch.in_time(watch.post, 0, caller, id="refused")
            assert not isinstance(caught.value, OutcomeUnknown)
        assert caller.peek("refused") is None
        assert caller.cancel(cancelled)
        late = watch.node("late")
        watch.wait_handled(*pending)
        # Wait for the length of two leases: without renewals the first would have ended.
        eventually(lambda: node.timer.stats().totals["confirmed"] >= 2)
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + 2 * PATIENT["lease"] / 1000)
        assert not ev.lease_lost
        held.go_on(100)
        watch.wait_handled(long)
        eventually(lambda: caller.stats().in_flight == 0)
        assert [True, True] == [n.timer.health().ok for n in (node, late)]
        assert [] == node.errors + late.errors
        watch.client.config_set("maxmemory", 0)
    assert [] == node.heard("lease_lost") + node.heard("disconnected")


@contextlib.contextmanager
def _not_persisting(own, client):
    """Refuse writes as after a failed snapshot: its process is killed."""
    client.config_set("save", "3600 1")
    client.config_set("rdb-key-save-delay", 10_000_000)
    client.set("filler", "x")
    client.bgsave()
    children = Path(f"/proc/{own.pid}/task/{own.pid}/children")
    eventually(children.read_text)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    client.config_set("rdb-key-save-delay", 0)
    client.bgsave()
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok")
    client.delete("filler")


@contextlib.contextmanager
def _demoted(own, client):
    client.replicaof("127.0.0.1", 1)
    yield
    client.replicaof("NO", "ONE")


@contextlib.contextmanager
def _orphaned(own, client):
    client.config_set("replica-serve-stale-data", "no")
    with _demoted(own, client):
        yield
    client.config_set("replica-serve-stale-data", "yes")


@contextlib.contextmanager
def _without_replicas(own, client):
    client.config_set("min-replicas-to-write", 1)
    yield
    client.config_set("min-replicas-to-write", 0)


#: For each refusal: how to provoke it, and its words.
REFUSALS = {
    "MISCONF": (_not_persisting, "MISCONF"),
    "READONLY": (_demoted, "read only replica"),
    "MASTERDOWN": (_orphaned, "Link with MASTER is down"),
    "NOREPLICAS": (_without_replicas, "NOREPLICAS"),
}


@pytest.mark.parametrize(
    "word",
    [
        pytest.param("MISCONF", marks=pytest.mark.fault("F33")),
        pytest.param("READONLY", marks=pytest.mark.fault("F34")),
        pytest.param("MASTERDOWN", marks=pytest.mark.fault("F35")),
        pytest.param("NOREPLICAS", marks=pytest.mark.fault("F36")),
    ],
)
def test_a_post_fails_with_the_words_of_a_server_that_refuses_writes(
    watch, own, caller, refused, word
):
    """
    The words name the cause, and nothing was stored. The node reports the refusal once and keeps
    trying. A handler that ends meanwhile is confirmed when the server accepts writes again.
    """
    held = GatedHandler()
    node = watch.node(handler=held, lease=6_000, max_events=1)
    running = watch.post()
    held.begun()
    pending = watch.post(200)
    inject, words = REFUSALS[word]
    with watch.fault() as fault, inject(own, watch.client):
        with pytest.raises(StoreError, match=words) as caught:
            watch.in_time(watch.post, 0, refused, id="refused")
        assert not isinstance(caught.value, OutcomeUnknown)
        tries = watch.gauges.connects
        fault.felt()
        assert words in str(node.timer.health().error)
        held.go_on(1000)
        if word in ("READONLY", "MASTERDOWN"):
            # The address may lead to a new master: the node must connect again.
            eventually(lambda: watch.gauges.connects > tries)
    assert caller.peek("refused") is None
    watch.wait_handled(running, pending)
    eventually(lambda: caller.stats().in_flight == 0)
    assert [] == node.heard("lease_lost")


class TestAfterALostReply:
    """A call whose first reply was lost and whose second attempt is refused."""

    @pytest.mark.fault("F36")
    def test_the_outcome_of_a_stored_post_is_unknown(self, own, namespace):
        """
        The first attempt stored the event. The second is refused before its script runs, because
        the replica has gone. If the refusal counted as definite, the caller would post again.
        """
        with Proxy(own) as proxy, own.client() as client:
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
            "DTSTALE a later operation of this lane has been done",
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
            store.close()
        assert 2 == len(tries)
