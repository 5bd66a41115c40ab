"""A codec is introduced, and its key is rotated, while nodes of both versions run."""

import base64
import contextlib
import itertools
import threading

import pytest
from servers import eventually

from dtimer import Json, Reason, Signed, State, UnreadablePayload, Zlib
from dtimer.contrib.codecs import Encrypted
from dtimer.testing import Catch, Clock

OLD, NEW = (base64.urlsafe_b64encode(2 * key) for key in (b"0123456789abcdef", b"f" * 16))

#: The steps of docs/howto/codecs.rst: a codec is introduced, its key is rotated, it is given up.
STEPS = {
    make.__name__: [
        Json(),
        make(OLD, stage="open"),
        make(OLD, stage="seal"),
        make(OLD),
        make([OLD, NEW]),
        make([NEW, OLD]),
        make(NEW),
        make(NEW, stage="seal"),
        make(NEW, stage="open"),
        Json(),
    ]
    for make in (Signed, Encrypted)
}
STEPS["Zlib"] = [Json(), Zlib(1), Json()]

EVENTS = 40
DAY = 86_400_000


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_step_delivers_each_event_at_once(make, client, steps):
    """Nodes before and after a step read each other's events: none is put off, lost or buried."""
    handled, lock = [], threading.Lock()

    def start(codec, id):
        node = make(id, codec=codec, max_events=5)

        @node.on("event")
        def handle(events):
            with lock:
                handled.extend((ev.id, ev["n"]) for ev in events)

        node.join()
        return node

    number = itertools.count()
    with contextlib.ExitStack() as nodes:
        old = start(steps[0], "old")
        for codec in steps[1:]:
            nodes.callback(old.leave)
            new = start(codec, "new")
            posted = set()
            for node in (old, new):
                node.every(3_600_000, {"n": -1}, id="hourly")
                posted |= {(id, n) for n in [next(number)] for id in [node.post({"n": n}, 20)]}
                items = [(n, {"n": n, "text": "x" * 600}) for n in itertools.islice(number, EVENTS)]
                ids = node.post_many([(payload, n % 50) for n, payload in items])
                posted |= {(id, n) for id, (n, _) in zip(ids, items, strict=True)}
            extra = {(node.run_now("hourly"), -1) for node in (old, new)}
            eventually(lambda posted=posted | extra: posted <= set(handled))
            old.leave()
            old = new
        nodes.callback(old.leave)
        assert len(handled) == len(set(handled))
        assert 0 == old.stats().dead
        assert 0 == old.stats().totals["snoozed"]


def put_off(timer, clock):
    """Wait until the event is put off; return for how many ms."""

    def left():
        record = timer.peek("tea")
        return record.state is State.SCHEDULED and max(0, record.due - clock())

    eventually(left)
    return left()


@pytest.fixture
def clock():
    return Clock(1_800_000_000_000)


class TestUnreadable:
    """An event that no joined node can open."""

    @pytest.fixture
    def writer(self, make, clock):
        """A timer with the key, which has posted the event ``tea`` and has not joined."""
        writer = make("writer", now=clock, codec=Encrypted(NEW))
        writer.post({"n": 7}, id="tea", max_retries=0)
        return writer

    @pytest.fixture
    def reader(self, make, clock):
        """A timer with another key."""
        reader = make("reader", now=clock, codec=Encrypted(OLD))
        reader.on("event", lambda events: None)
        return reader

    def test_waits_and_is_reported_and_counted(self, writer, reader, clock):
        """A node that lacks the key must neither handle the event nor make a dead letter."""
        errors = Catch(reader, "error")
        with reader:
            assert isinstance(error := errors.next(), UnreadablePayload)
            assert "'tea'" in str(error)
            for seconds in (1, 1, 2, 4):
                assert seconds * 1000 == put_off(writer, clock)
                clock.tick(seconds * 1000)
            eventually(lambda: reader.health().unreadable == 5)
            assert reader.health().ok
        record = writer.peek("tea")
        assert (State.SCHEDULED, 0, {"n": 7}) == (record.state, record.attempt, record.event)
        assert errors.empty()

    def test_is_handled_by_a_node_with_the_key(self, writer, reader, clock):
        """The next deployment brings the key."""
        caught = Catch(writer, "event")
        with reader:
            put_off(writer, clock)
        with writer:
            clock.tick(1_000)
            (ev,) = caught.next()
        assert ({"n": 7}, 1) == (ev, ev.attempt)

    def test_becomes_a_dead_letter_after_a_day_and_can_be_revived(self, writer, reader, clock):
        """The event is visible to the operator, and no byte of it is lost."""
        reader.on("error", lambda error: None)
        dead = Catch(reader, "dead")
        with reader:
            put_off(writer, clock)
            clock.tick(DAY)
            letter = dead.next()
        assert ("tea", Reason.UNREADABLE, None) == (letter.id, letter.reason, letter.event)
        assert letter.sealed.startswith("encrypted, ")
        assert {"n": 7} == next(writer.dead()).event
        assert writer.revive("tea")
        caught = Catch(writer, "event")
        with writer:
            clock.tick(1)
            (ev,) = caught.next()
        assert ({"n": 7}, 1) == (ev, ev.attempt)

    def test_is_corrupt_if_it_opens_and_is_not_a_payload(self, make, client, clock, namespace):
        """No key can help there, so the event does not wait."""
        node = make("node", now=clock, codec=Signed(OLD))
        dead = Catch(node, "dead")
        node.on("event", lambda events: None)
        node.post({}, id="tea")
        sealed = Signed(OLD).seal(b"[1]")
        assert 0 == client.hset(f"dtimer:{{{namespace}}}:body", "tea", b",3,n|" + sealed)
        with node:
            letter = dead.next()
        assert (Reason.CORRUPT, None, None) == (letter.reason, letter.event, letter.sealed)
