"""A hostile server and hostile data: no event gets stuck, and no operation is done by half."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from peers import LEASE, Peer, post
from proxy import Proxy
from redis.exceptions import ResponseError
from servers import PATIENCE, PROMPT
from soundness import assert_sound

from dtimer import DTimer, Health, OutcomeUnknown, StoreError
from dtimer.model.claims import ClaimRequest, Outcome, Settlement, Verdict
from dtimer.store.connection.sources import source
from dtimer.store.store import Store
from dtimer.testing import Catch


@pytest.fixture
def store(client, namespace, now):
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.close()


class TestForbidden:
    """Commands that an ACL forbids, and operations that work without them."""

    def test_a_producer_without_channels_posts(self, tcp_server, now):
        """A wake that may not be published does not undo the post."""
        with tcp_server.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "mute", "on", ">pw", "~*", "resetchannels", "+@all"
            )
            admin = Store(source(client, 1.0), "dt", timeout=3.0, now=now)
            node = Peer(admin, "node")
            node.claim_reply()
            url = tcp_server.url.replace("redis://", "redis://mute:pw@")
            mute = Store(source(url, 1.0), "dt", timeout=3.0, now=now)
            post(mute, "tea")
            peer = Peer(mute, "mute")
            now.tick(60)
            assert ["tea"] == [c.id for c in peer.claim()]
            assert_sound(client, admin.keys)
            mute.close()
            admin.close()

    def test_a_refusal_after_a_lost_reply_is_outcome_unknown(self, tcp_server):
        """
        If the server may have acted before it refused, the error says that the outcome is
        unknown.
        """
        with Proxy(tcp_server.url) as proxy, tcp_server.client() as client:
            client.execute_command("ACL", "SETUSER", "tea", "on", ">pw", "~*", "&*", "+@all")
            url = proxy.url.replace("redis://", "redis://tea:pw@")
            timer = DTimer("node", url, timeout=3_000)
            # Opens the namespace, so that the lost reply is that of the post.
            timer.post({}, 60_000, id="cake")
            proxy.drop_reply_once(b"EVAL", close=False)
            failed = []

            def attempt():
                try:
                    timer.post({}, 60_000, id="tea")
                except StoreError as e:
                    failed.append(e)

            thread = threading.Thread(target=attempt)
            thread.start()
            assert proxy.wait_dropped(10)
            client.execute_command("ACL", "SETUSER", "tea", "off")
            thread.join(PATIENCE)
            assert [OutcomeUnknown] == [type(e) for e in failed]
            timer.leave()


@pytest.mark.fault("F30")
class TestFullMemory:
    """If Redis is out of memory, operations that free memory must work, even in a new process."""

    @pytest.fixture
    def full(self, tcp_server, now):
        """A store with one claimed event, on a server that accepts no more data."""
        client = tcp_server.client()
        store = Store(source(tcp_server.url, 1.0), "dt", timeout=3.0, now=now)
        node = Peer(store, "node")
        post(store, "tea")
        (claim,) = node.claim()
        client.config_set("maxmemory", 1)
        yield store, node, claim, tcp_server.url
        store.close()
        client.close()

    def test_leases_are_renewed(self, full, now):
        """A running event keeps its lease, and so is not started a second time."""
        store, _, claim, _ = full
        now.tick(LEASE - 1)
        assert [True] == store.extend([("tea", claim.token)], LEASE * 1000)
        now.tick(LEASE - 1)
        assert [] == Peer(store, "other").claim()

    def test_a_new_process_can_join_and_drain(self, full, now):
        """A process that starts now can join, claim, confirm, cancel and peek."""
        _, node, claim, url = full
        fresh = Store(source(url, 1.0), "dt", timeout=3.0, now=now)
        assert "tea" == fresh.peek("tea").id
        node.release(claim)
        peer = Peer(fresh, "fresh")
        (again,) = peer.claim()
        assert Outcome.DONE is peer.confirm(again)
        fresh.cancel("tea")
        fresh.close()


FOREIGN = {
    "endless number": ("body", b",%s|{}" % (b"9" * 5000)),
    "endless expiry": ("body", b"%s,3|{}" % (b"9" * 5000)),
    "infinite score": ("due", float("inf")),
    "past score": ("due", float("-inf")),
    "fractional score": ("due", 1.5),
    "tries": ("tries", b"nan"),
    "many tries": ("tries", b"1e300"),
    "token": ("token", b"abc"),
    "huge token": ("token", b"100000000000000000"),
    "totals": ("totals", b"many"),
    "lease": ("lease", b"what,is,this"),
    "long lease": ("lease", b"1,%s,1,,x" % (b"9" * 400)),
}


class TestForeign:
    """Data that another program has written into the keys."""

    @pytest.mark.fault("F38")
    def test_expired_events_do_not_delay_the_rest(self, store, node, now):
        """A node with a free thread claims again at once, however many events have expired."""
        for i in range(30):
            post(store, f"old{i}", i, expires="+100000")
        now.tick(200)
        post(store, "good")
        claims = 0
        while not (reply := node.claim_reply()).claims:
            assert 0 == reply.wait_us
            claims += 1
            assert claims <= 40
        assert "good" == reply.claims[0].id
        assert 30 == store.stats().totals["expired"]

    @pytest.mark.parametrize(("field", "value"), FOREIGN.values(), ids=FOREIGN)
    def test_a_foreign_value_does_not_block_other_events(self, store, node, client, field, value):
        """
        If a record holds any foreign value, the other events are still delivered and
        confirmed.
        """
        post(store, "bad")
        post(store, "good")
        keys = store.keys
        if field == "due":
            client.zadd(keys.due, {"bad": value})
        elif field == "token":
            client.hset(keys.sys, "token", value)
        elif field == "totals":
            for name in ("posted", "started", "confirmed", "died"):
                client.hset(keys.sys, f"n:{name}", value)
        else:
            client.hset(getattr(keys, field), "bad", value)
        claimed = []
        for _ in range(4):
            reply = node.claim_reply(10)
            claimed += [c.id for c in reply.claims]
            node.claim_reply(0, *[Settlement(c.id, c.token, Verdict.CONFIRM) for c in reply.claims])
        assert "good" in claimed
        assert store.peek("good") is None
        store.peek("bad")
        store.stats()
        list(store.upcoming("-inf", "+inf"))
        list(store.dead())
        post(store, "next")
        assert "next" in [c.id for c in node.claim(10)]

    def test_a_binary_id_is_confirmed(self, store, node, client):
        """An id that is not UTF-8 is sent back unchanged, so its event can be confirmed."""
        client.zadd(store.keys.due, {b"\xff\x00": 1})
        client.hset(store.keys.body, b"\xff\x00", b",3|{}")
        (claim,) = node.claim()
        assert Outcome.DONE is node.confirm(claim)
        assert 0 == client.exists(store.keys.due)

    def test_ids_with_any_characters_survive_a_lost_reply(self, store, node, client):
        """A claim that is sent again returns the same events, with any characters in their ids."""
        for i, id in enumerate([b"a\nb", b"", b"3:c"]):
            client.zadd(store.keys.due, {id: i + 1})
            client.hset(store.keys.body, id, b",3|{}")
        first = node.claim_reply(3)
        again = node.claim_reply(3, again=True)
        assert [(c.id, c.token) for c in first.claims] == [(c.id, c.token) for c in again.claims]

    def test_dead_letters_with_fractional_scores_are_listed_once(self, store, client):
        """Paging through dead letters ends with any scores."""
        for i in range(150):
            client.zadd(store.keys.graves, {f"e{i:03}": 1.5})
            client.hset(store.keys.dead, f"e{i:03}", b"1,failed,0|")
        assert 150 == len(list(store.dead()))


class TestClaim:
    """Parts of a claim other than the events."""

    def test_a_repeated_claim_sends_its_echo_again(self, store, node, client):
        """
        A claim that is sent again publishes its echo again, because the first echo may be
        lost too.
        """
        channel = store.keys.echo("node")
        with client.pubsub() as pubsub:
            pubsub.subscribe(channel)
            assert pubsub.get_message(timeout=PATIENCE)
            for _ in range(2):
                store.claim("node", ClaimRequest(99, 0, True, True), LEASE * 1000)
                assert "message" == pubsub.get_message(timeout=PATIENCE)["type"]

    def test_a_repeated_claim_names_the_buried_events(self, store, node, now):
        """
        If the reply to a claim was lost, its repetition names the events that the claim
        buried.
        """
        post(store, "old", expires="+1000")
        now.tick(10)
        assert [("old", "expired")] == node.claim_reply().buried
        assert [("old", "expired")] == node.claim_reply(again=True).buried

    @pytest.mark.parametrize(
        "key",
        ["due", "body", "lease", "tries", "sys", "memo_a", "nodes", "alive", "roster", "promise"],
    )
    def test_a_claim_that_met_a_foreign_key_reports_its_settlements_when_repeated(
        self, store, node, client, key
    ):
        """
        A claim that meets a key of a foreign type, at any point, names the key. When it is sent
        again after the key has been repaired, it reports the event as confirmed, and the event is
        not lost.
        """
        post(store, "tea")
        (claim,) = node.claim()
        post(store, "egg")
        confirm = Settlement("tea", claim.token, Verdict.CONFIRM)
        name = getattr(store.keys, key)
        kept = client.dump(name)
        client.set(name, "foreign")
        with pytest.raises(ResponseError, match=name):
            node.claim_reply(1, confirm)
        client.delete(name)
        if kept:
            client.restore(name, 0, kept)
        reply = node.claim_reply(1, confirm, again=True)
        assert [Outcome.DONE] == reply.results
        assert ["egg"] == [c.id for c in reply.claims or node.claim()]
        assert not client.hexists(store.keys.body, "tea")
        assert_sound(client, store.keys)

    def test_every_claim_of_an_unregistered_node_says_so(self, store, node, client):
        """
        Until a node is registered, each reply says that it is not, because registering may
        fail.
        """
        client.hdel(store.keys.nodes, "node")
        assert not node.claim_reply().known
        assert not node.claim_reply().known

    def test_claims_are_bounded_by_bytes(self, store, node):
        """Large payloads are claimed a few at a time, so that no script runs long."""
        for i in range(40):
            post(store, f"e{i:02}", payload='{"a":"%s"}' % ("x" * 200_000))
        assert len(node.claim(100)) <= 20
        assert len(node.claim(100)) > 0

    def test_keep_does_not_keep_an_event_cancelled_in_flight(self, store, node, now):
        """
        An event cancelled in flight is not pending, so a post with ``keep`` is stored and
        not lost.
        """
        post(store, "tea")
        node.claim()
        store.cancel("tea")
        post(store, "tea", policy="keep", payload='{"new":1}')
        now.tick(LEASE)
        assert [b'{"new":1}'] == [c.payload for c in node.claim()]

    def test_a_repeated_pause_acts_once(self, store):
        """A pause whose reply was lost returns the first result when it is sent again."""
        assert b"1" == store._scripts.call_once("pause", "1", op="session:1")
        assert b"1" == store._scripts.call_once("pause", "1", op="session:1")


class TestDeadlines:
    """Every call ends by its deadline, even if single bytes keep arriving."""

    @pytest.mark.fault("F06")
    def test_trickling_bytes_do_not_extend_a_deadline(self):
        """A server that sends single bytes does not delay a call beyond its deadline."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ending = threading.Event()

            def trickle():
                lines = []
                while not ending.is_set():
                    try:
                        line, _ = listener.accept()
                    except OSError:
                        return
                    lines.append(line)
                    threading.Thread(target=drip, args=(line,)).start()

            def drip(line):
                with line:
                    while not ending.wait(0.05):
                        try:
                            line.sendall(b"*")
                        except OSError:
                            return

            thread = threading.Thread(target=trickle)
            thread.start()
            timer = DTimer("node", f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=600)
            began = time.monotonic()
            with pytest.raises(StoreError):
                timer.post({})
            assert time.monotonic() - began < PROMPT
            ending.set()
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)

    def test_an_error_that_quotes_a_lone_surrogate_is_stored(self, server, namespace):
        """An error text that UTF-8 cannot encode is stored, and the node continues."""
        node = DTimer("node", server.url, ns=namespace, max_retries=0)
        retried = Catch(node, "event")
        node.on("error", lambda e: None)

        @node.on("event")
        def fail(events):
            if "u" in events[0]:
                raise ValueError("bad " + events[0]["u"])

        with node:
            node.post({"u": "\ud800"}, id="bad")
            node.post({"n": 1}, 1)
            retried.next()
            assert {"n": 1} == retried.next()[0]
            assert isinstance(node.health(), Health)
        assert "\\ud800" in next(iter(node.dead())).error
        node.leave()
