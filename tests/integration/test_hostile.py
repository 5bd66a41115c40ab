"""A hostile server and hostile data: no event gets stuck, and no operation is done by half."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from background import background, in_thread
from peers import LEASE, post
from proxy import Proxy
from redis.exceptions import ResponseError
from servers import PATIENCE, PROMPT
from soundness import assert_sound

from dtimer import DTimer, OutcomeUnknown, StoreError
from dtimer.model.claims import ClaimRequest, Outcome, Settlement, Verdict
from dtimer.store.connection.sources import source
from dtimer.store.store import Store


@pytest.fixture
def store(client, namespace, now):
    store = Store(source(client, 1.0), namespace, timeout=3.0, now=now)
    yield store
    store.release()


class TestForbidden:
    """Commands that an ACL forbids, and operations that work without them."""

    def test_a_refusal_after_a_lost_reply_is_outcome_unknown(self, tcp_server):
        """The server may have acted before it refused the second attempt."""
        with Proxy(tcp_server.url) as proxy, tcp_server.client() as client:
            client.execute_command("ACL", "SETUSER", "tea", "on", ">pw", "~*", "&*", "+@all")
            url = proxy.url.replace("redis://", "redis://tea:pw@")
            timer = DTimer("node", url, timeout=3_000)
            # Opens the namespace, so that the lost reply is that of the post.
            timer.post({}, 60_000, id="cake")
            proxy.drop_reply_once(b"EVAL", close=False)
            posting = in_thread(lambda: timer.post({}, 60_000, id="tea"))
            assert proxy.wait_dropped(10)
            client.execute_command("ACL", "SETUSER", "tea", "off")
            with pytest.raises(OutcomeUnknown):
                posting.result(PATIENCE)
            timer.leave()


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

    def test_a_binary_id_is_confirmed(self, store, node, client):
        """An id that is not UTF-8 is sent back unchanged, so its event can be confirmed."""
        client.zadd(store.keys.due, {b"\xff\x00": 1})
        # No expiry, `max_retries` 3 and an empty payload (dtimer/store/format.py).
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
        repetition = node.claim_reply(3, again=True)
        assert [(c.id, c.token) for c in first.claims] == [
            (c.id, c.token) for c in repetition.claims
        ]

    def test_dead_letters_with_fractional_scores_are_listed_once(self, store, client):
        """Paging through dead letters ends with any scores."""
        for i in range(150):
            client.zadd(store.keys.graves, {f"e{i:03}": 1.5})
            client.hset(store.keys.dead, f"e{i:03}", b"1,failed,0|")
        assert 150 == len(list(store.dead()))


class TestClaim:
    """Parts of a claim other than the events."""

    def test_a_repeated_claim_sends_its_echo_again(self, store, node, client):
        """The first echo may be lost too, and the node would count as deaf."""
        channel = store.keys.echo("node")
        with client.pubsub() as pubsub:
            pubsub.subscribe(channel)
            assert pubsub.get_message(timeout=PATIENCE)
            for _ in range(2):
                store.claims.start("node", ClaimRequest(99, 0, True, True), LEASE * 1000)(
                    read_late=False
                )
                assert "message" == pubsub.get_message(timeout=PATIENCE)["type"]

    def test_a_repeated_claim_names_the_buried_events(self, store, node, now):
        """Without the names the node could not emit 'dead' for these events."""
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
        """When the key has been repaired, the repetition of the claim reports its confirm."""
        post(store, "tea")
        (claim,) = node.claim()
        post(store, "egg")
        confirm = Settlement("tea", claim.token, Verdict.CONFIRM)
        name = getattr(store.keys, key)
        dump = client.dump(name)
        client.set(name, "foreign")
        with pytest.raises(ResponseError, match=name):
            node.claim_reply(1, confirm)
        client.delete(name)
        if dump:
            client.restore(name, 0, dump)
        reply = node.claim_reply(1, confirm, again=True)
        assert [Outcome.DONE] == reply.results
        assert ["egg"] == [c.id for c in reply.claims or node.claim()]
        assert not client.hexists(store.keys.body, "tea")
        assert_sound(client, store.keys)

    def test_every_claim_of_an_unregistered_node_says_so(self, store, node, client):
        """The node must learn it from each reply, because registering may fail."""
        client.hdel(store.keys.nodes, "node")
        assert not node.claim_reply().known
        assert not node.claim_reply().known

    def test_a_repeated_pause_acts_once(self, store):
        """A pause whose reply was lost returns the first result when it is sent again."""
        assert b"1" == store._scripts.call_once("pause", "1", op="session:1")
        assert b"1" == store._scripts.call_once("pause", "1", op="session:1")


@pytest.mark.fault("F06")
def test_trickling_bytes_do_not_extend_a_deadline():
    """A server that sends single bytes does not delay a call beyond its deadline."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ending = threading.Event()

        def drip(line):
            with line, contextlib.suppress(OSError):
                while not ending.wait(0.05):
                    line.sendall(b"*")

        def accept():
            with contextlib.suppress(OSError):
                while not ending.is_set():
                    in_thread(drip, listener.accept()[0])

        with background(accept):
            timer = DTimer("node", f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=600)
            began = time.monotonic()
            with pytest.raises(StoreError):
                timer.post({})
            assert time.monotonic() - began < PROMPT
            ending.set()
            listener.shutdown(socket.SHUT_RDWR)
