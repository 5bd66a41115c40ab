"""Faults F31, F32 and F37 to F40: stored data is evicted, foreign, or of another version."""

from __future__ import annotations

import contextlib

import pytest
from gated import Gated
from servers import LATER, PROMPT, eventually

from dtimer import NamespaceCorrupt
from dtimer.testing import Catch

pytestmark = pytest.mark.chaos


@pytest.fixture
def caller(caller):
    """A timer that only posts, with a listener for errors."""
    # Without a listener an error would be logged, and the watch allows no log lines.
    caller.on("error", lambda _: None)
    return caller


def _fill(client, megabytes, ttl=None):
    """Write this many megabytes of keys that do not belong to dtimer, with this TTL in seconds."""
    with client.pipeline(transaction=False) as pipe:
        for n in range(megabytes * 10):
            pipe.set(f"filler:{n}", b"x" * 100_000, ex=ttl)
        pipe.execute()


def _limit_memory(client, policy):
    """Let the server evict keys by this policy when it needs three more megabytes."""
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 3_000_000)


@contextlib.contextmanager
def _replaced(client, key):
    """Put a string in the place of a key, and the right value back at the end."""
    client.pipeline().rename(key, "kept").set(key, "foreign").execute()
    yield
    assert b"foreign" == client.get(key)
    client.pipeline().delete(key).rename("kept", key).execute()


class TestEviction:
    """A server that evicts keys when its memory is full."""

    @pytest.mark.fault("F31")
    def test_a_node_recovers_after_whole_keys_were_evicted(self, watch, caller):
        """Events are lost. Retrying them for ever would block the others."""
        node = watch.node()
        ids = [watch.post(LATER, more={"x": "x" * 1000}) for _ in range(5)]
        # The eviction below removes these events, or only their payloads.
        watch.excused |= set(ids)
        with watch.fault(degraded=False):
            _limit_memory(watch.client, "allkeys-random")
            while watch.client.exists(watch.keys.due, watch.keys.body) == 2:
                _fill(watch.client, 6)
            watch.client.config_set("maxmemory", 0)
            for id in ids:
                caller.reschedule(id, 0)
            eventually(lambda: caller.stats().scheduled == 0)
            eventually(lambda: len(watch.client.hvals(watch.keys.nodes)) == 1)
        letters = {letter.id: letter for letter in caller.dead()}
        assert set(letters) in (set(), set(ids))
        assert {"payload_missing"} >= {letter.reason for letter in letters.values()}
        eventually(lambda: len(letters) == len(node.heard("dead")))
        caller.purge_dead()
        # If only the index was evicted, no call can find the payloads that are left.
        watch.client.hdel(watch.keys.body, *ids)

    @pytest.mark.fault("F31")
    def test_an_event_without_its_payload_becomes_a_dead_letter(self, watch, caller):
        """The dead letter is reported once, and the other events of the claim are handled."""
        node = watch.node(max_events=10)
        lost = [watch.post(LATER) for _ in range(3)]
        # They become dead letters without a delivery.
        watch.excused |= set(lost)
        with watch.fault(silent=True):
            watch.client.hdel(watch.keys.body, *lost)
            for id in lost:
                assert caller.reschedule(id, 0)
            kept = [watch.post() for _ in range(3)]
            watch.wait_handled(*kept)
            eventually(lambda: len(node.heard("dead")) == 3)
        assert {(id, "payload_missing") for id in lost} == {
            (letter.id, letter.reason) for letter in node.heard("dead")
        }
        assert 3 == caller.purge_dead()

    @pytest.mark.fault("F32")
    def test_a_volatile_policy_evicts_no_key_of_dtimer(self, watch, caller):
        """Such a policy evicts only keys with a time to live, and no key of dtimer has one."""
        _limit_memory(watch.client, "volatile-lru")
        node, handler, ev = watch.busy_node()
        pending = watch.post(100)
        caller.every(LATER, {}, id="hourly")
        with watch.fault(silent=True):
            keys = [key for key in watch.keys if watch.client.exists(key)]
            assert len(keys) > 8
            assert {-1} == {watch.client.ttl(key) for key in keys}
            _fill(watch.client, 10, ttl=3600)
            assert watch.client.info("stats")["evicted_keys"] > 10
            assert keys == [key for key in keys if watch.client.exists(key)]
            assert not ev.lease_lost
            handler.go_on(1000)
            watch.wait_handled(ev.id, pending)
        caller.unschedule("hourly")
        watch.client.config_set("maxmemory", 0)
        assert [] == node.heard("lease_lost")


class TestForeignData:
    """Data in the namespace that dtimer did not write."""

    @pytest.mark.fault("F37")
    @pytest.mark.parametrize("field", ["due", "body", "lease", "nodes"])
    def test_a_call_names_a_key_of_a_foreign_type_and_writes_nothing(self, watch, caller, field):
        """A partial write would corrupt the namespace further."""
        gate = Gated()
        node = watch.node(concurrency=2, handler=lambda ev: ev.get("hold") and gate(ev))
        running = watch.post(more={"hold": True})
        gate.begun()
        pending = [watch.post(300) for _ in range(3)]
        keys = watch.keys
        key = getattr(keys, field)
        others = [k for k in (keys.due, keys.body, keys.lease, keys.dead) if k != key]
        with watch.fault() as fault:
            before = [watch.client.dump(k) for k in others]
            with _replaced(watch.client, key):
                if field != "nodes":
                    with pytest.raises(NamespaceCorrupt, match="holds a string"):
                        watch.in_time(watch.post, 0, caller, id="refused")
                    assert before == [watch.client.dump(k) for k in others]
                gate.go_on(1)
                fault.felt(0.8)
        watch.wait_handled(running, *pending)
        assert [] == node.heard("lease_lost")

    @pytest.mark.fault("F37")
    def test_a_heartbeat_that_meets_a_foreign_key_reports_one_outage(self, watch):
        """With one busy handler thread only heartbeats use the key, several of them."""
        node, handler, ev = watch.busy_node(lease=3_000)
        with watch.fault() as fault:
            with _replaced(watch.client, watch.keys.lease):
                fault.felt(0.8)
                assert 1 == len(node.errors)
            handler.go_on(1000)
        watch.wait_handled(ev.id)

    @pytest.mark.fault("F38")
    def test_a_foreign_payload_becomes_a_dead_letter_with_its_bytes_unchanged(self, watch, caller):
        """An operator needs the bytes to find the writer. Other events do not wait."""
        node = watch.node(max_events=20)
        # A valid head, ",3|", has no expiry and `max_retries` 3 (dtimer/store/format.py).
        foreign = {
            "text": b",3|not json",
            "half": b',3|{"a":',
            "bytes": b",3|\xff\xfe\x00",
            "a list": b",3|[1]",
            "deep": b",3|" + b"[" * 100_000,
            "constant": b',3|{"a":NaN}',
            "head": b"\xff not a head of dtimer",
            "nothing": b"",
        }
        with watch.fault(silent=True):
            with watch.client.pipeline() as pipe:
                for id, body in foreign.items():
                    pipe.hset(watch.keys.body, id, body)
                    pipe.zadd(watch.keys.due, {id: 1})
                pipe.execute()
            watch.wait_handled(*[watch.post() for _ in range(5)])
            eventually(lambda: len(node.heard("dead")) >= len(foreign))
            letters = node.heard("dead")
            assert set(foreign) == {letter.id for letter in letters}
            assert {("corrupt", None)} == {(le.reason, le.event) for le in letters}
            assert foreign == {letter.id: letter.raw for letter in letters}
        assert len(foreign) == caller.purge_dead()

    @pytest.mark.fault("F39")
    def test_a_node_claims_nothing_in_a_namespace_of_a_later_version(self, watch):
        """This version could misread the events. Other timers can neither join nor post."""
        node = watch.node()
        pending = watch.post(150)
        with watch.fault() as fault:
            watch.client.hset(watch.keys.sys, "v", "3")
            eventually(lambda: node.errors)
            assert "version 3" in str(node.errors[0])
            timer = watch.caller()
            for call in (timer.join, lambda: timer.post({}), timer.stats):
                with pytest.raises(NamespaceCorrupt, match="version 3, and this dtimer knows"):
                    watch.in_time(call)
            fault.felt(0.8)
            assert 0 == watch.times(pending)
            watch.client.hset(watch.keys.sys, "v", "2")
        watch.wait_handled(pending)


@pytest.mark.fault("F40")
def test_an_event_posted_to_an_empty_namespace_is_woken_for(watch, caller):
    """Redis deletes a key with its last member, and the next post creates it again."""
    watch.node(poll_interval=LATER)
    with watch.fault(silent=True):
        for _ in range(5):
            id = watch.post()
            watch.wait_handled(id)
            assert watch.latest(id) < PROMPT * 1000
            eventually(lambda: 0 == watch.client.exists(watch.keys.due, watch.keys.lease))
            assert 0 == watch.client.exists(watch.keys.body, watch.keys.tries, watch.keys.dead)
        caught = Catch(caller, "error")
        id = watch.post(more={"again": 1}, timer=caller)
        watch.wait_handled(id)
    assert caught.empty()
