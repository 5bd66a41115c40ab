"""Payloads that a codec has written, on a real server."""

import base64

import pytest

from dtimer import Declared, Json, Signed, State, Zlib
from dtimer.contrib.codecs import Encrypted
from dtimer.store.keys import Keys
from dtimer.testing import Catch, Clock

OLD, NEW = (base64.urlsafe_b64encode(2 * key) for key in (b"0123456789abcdef", b"f" * 16))
SECRET = {"card": "4111 1111", "text": "x" * 600}

CODECS = {
    "zlib": Zlib(),
    "signed": Signed(OLD, "shop"),
    "encrypted": Encrypted(OLD),
    "all": Json() | Zlib() | Signed(OLD) | Encrypted(OLD),
}


@pytest.fixture
def clock():
    return Clock(1_800_000_000_000)


@pytest.fixture
def timer(make, clock):
    """A function: a timer with this codec, whose clock the test moves."""

    def timer(codec=None, id="node"):
        return make(id, now=clock, codec=Json() if codec is None else codec)

    return timer


def stored(client, namespace, id):
    """Return the stored bytes of a payload."""
    return client.hget(Keys.of(namespace).body, id).partition(b"|")[2]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
class TestEvents:
    """Events whose payloads a codec has written."""

    def test_arrive_as_they_were_posted(self, timer, clock, codec):
        """A handler is given the payload of a single post, of many, and of a pipeline."""
        node = timer(codec)
        caught = Catch(node, "event")
        with node:
            node.post(SECRET, id="one")
            node.post_many([(SECRET | {"n": n}, 0) for n in range(3)])
            clock.tick(1)
            got = [caught.next()[0] for _ in range(4)]
        assert [SECRET] == [ev for ev in got if ev.id == "one"]
        assert [0, 1, 2] == sorted(ev["n"] for ev in got if ev.id != "one")

    def test_can_be_posted_in_a_pipeline(self, timer, client, codec):
        """The client of the pipeline sends the bytes unchanged."""
        node = timer(codec)
        with client.pipeline() as pipe:
            node.post(SECRET, 60_000, id="tea", pipe=pipe)
            node.post(SECRET, 60_000, pipe=pipe)
            pipe.execute()
        assert [SECRET, SECRET] == [record.event for record in node.upcoming()]

    def test_are_shown_to_a_timer_that_has_the_codec(self, timer, clock, codec):
        """Each inspection opens the payload: of a waiting event, a schedule and a dead letter."""
        node = timer(codec)
        node.post(SECRET, 60_000, id="tea", expires=100)
        node.every(60_000, SECRET, id="tick")
        assert SECRET == node.peek("tea").event
        assert [SECRET, SECRET] == [record.event for record in node.upcoming()]
        assert [SECRET] == [schedule.event for schedule in node.schedules()]
        dead = Catch(node, "expired")
        node.on("event", lambda events: None)
        with node:
            clock.tick(60_000)
            assert SECRET == dead.next().event
        assert State.DEAD is node.peek("tea").state
        assert [SECRET, SECRET] == [node.peek("tea").event, next(node.dead()).event]

    def test_have_a_fingerprint_of_the_payload_itself(self, timer, codec):
        """Encryption writes other bytes each time, and each start declares the schedules again."""
        assert Declared.NEW is timer(codec).every(60_000, SECRET, id="tick")
        assert Declared.SAME is timer(codec).every(60_000, SECRET, id="tick")
        assert Declared.SAME is timer(Json()).every(60_000, SECRET, id="tick")


@pytest.mark.parametrize("codec", [Signed(OLD), Encrypted(OLD)], ids=["signed", "encrypted"])
def test_a_timer_without_the_codec_shows_the_kind_and_the_length(
    timer, client, namespace, clock, codec
):
    """Each inspection works without the key, and does not quote the payload."""
    writer, reader = timer(codec), timer()
    writer.post(SECRET, 60_000, id="tea")
    writer.every(60_000, SECRET, id="tick")
    kind = type(codec).__name__.lower()
    text = f"{kind}, {len(stored(client, namespace, 'tea'))} bytes"
    assert (None, text) == (reader.peek("tea").event, reader.peek("tea").sealed)
    assert [text, text] == [record.sealed for record in reader.upcoming()]
    assert [(None, text)] == [(found.event, found.sealed) for found in reader.schedules()]


def test_encryption_leaves_no_text_of_the_payload_in_redis(timer, client, namespace):
    """The dump of a server must not have the payload of an event, a schedule or an occurrence."""
    node = timer(Encrypted(OLD))
    node.post(SECRET, 60_000)
    node.every(60_000, SECRET, id="tick")
    for key in Keys.of(namespace):
        assert b"4111" not in (client.dump(key) or b"")
    # The values of a hash may be compressed in a dump.
    for key in (Keys.of(namespace).body, Keys.of(namespace).plans):
        assert client.hvals(key)
        assert not any(b"4111" in value for value in client.hvals(key))


def test_a_declaration_writes_the_payload_of_a_schedule_under_the_new_key(timer, client, namespace):
    """Otherwise no node could open its occurrences once the old key is gone."""
    timer(Encrypted(OLD)).cron("0 9 * * *", SECRET, id="daily")
    due = timer().schedule("daily").due
    for codec in (Encrypted([NEW, OLD]), Encrypted(NEW)):
        assert Declared.SAME is timer(codec).cron("0 9 * * *", SECRET, id="daily")
        reader = timer(Encrypted(NEW))
        # The occurrence that was created before the declaration follows, too.
        assert [SECRET] == [record.event for record in reader.upcoming()]
        assert SECRET == reader.schedule("daily").event
        assert due == reader.schedule("daily").due
    assert SECRET == reader.peek(reader.run_now("daily")).event
