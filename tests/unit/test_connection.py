"""Replies that are read directly, and those that are left to redis-py's parser."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import time

import pytest
import redis
from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser

from dtimer.store.connection.connection import Connection, Packer
from dtimer.store.connection.deadline import fast_socket, with_deadline
from dtimer.store.failures import Failure, classify
from dtimer.store.keys import Keys
from dtimer.store.scripts import load

PARSERS = [_RESP2Parser, _RESP3Parser]
if importlib.util.find_spec("hiredis"):
    PARSERS.append(_HiredisParser)

PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"

#: Replies of a server, and the result of the call.
REPLIES = {
    b"$5\r\nhello\r\n": b"hello",
    b"$0\r\n\r\n": b"",
    b"$12\r\na\r\n$3\r\nabc\r\n\r\n": b"a\r\n$3\r\nabc\r\n",
    b"$-1\r\n": None,
    b":7\r\n": 7,
    b"+OK\r\n": b"OK",
    b"*-1\r\n": None,
    b"*3\r\n$1\r\na\r\n:2\r\n*1\r\n$1\r\nb\r\n": [b"a", 2, [b"b"]],
}


class Scripted(socket.socket):
    """A socket that receives the given pieces, one a read, and raises the exceptions among them."""

    def __init__(self, pieces) -> None:
        super().__init__()
        self.pieces = list(pieces)
        self.timeouts = []
        self.asked = []
        self.full = None
        self.sizes = []

    def settimeout(self, seconds):
        self.timeouts.append(seconds)

    def sendall(self, data, *_):
        if self.full:
            raise self.full

    def send(self, data, *_):
        self.sizes.append(len(data))
        self.sendall(data)
        return len(data)

    def recv(self, size, *_):
        self.asked.append(size)
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, OSError):
            raise piece
        if len(piece) > size:
            self.pieces.insert(0, piece[size:])
        return piece[:size]

    def recv_into(self, buffer, *_):
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class FakeSession:
    """A connection over such a socket."""

    def __init__(self, *pieces, parser=_RESP2Parser, base=redis.Connection) -> None:
        self.socket = Scripted(pieces)
        self.made = 0
        self.parsed = parsed = []
        line = self

        class FakeConnection(base):
            def _connect(self):
                return line.connect()

        class Parser(parser):
            def read_response(self, *args, **kwargs):
                parsed.append(self)
                return super().read_response(*args, **kwargs)

        def make():
            return with_deadline(FakeConnection)(
                parser_class=Parser,
                protocol=3 if parser is _RESP3Parser else 2,
                redis_connect_func=lambda c: c._parser.on_connect(c),
            )

        self.connection = Connection(make, Packer(Keys.of("ns")))

    def connect(self):
        self.made += 1
        return self.socket

    def start(self, until=None, limit=None, id="id"):
        if until is None:
            until = time.monotonic() + 100
        return self.connection.run(load("peek"), ["", "", id], until, limit)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.socket.close()


def cuts(reply):
    """Yield the reply whole, cut in two at every place, and byte by byte."""
    yield [reply]
    for at in range(1, len(reply)):
        yield [reply[:at], reply[at:]]
    yield [reply[at : at + 1] for at in range(len(reply))]


@pytest.mark.parametrize("parser", PARSERS)
class TestReplies:
    """The result of a call depends neither on the parser nor on how the bytes arrive."""

    @pytest.mark.parametrize("reply", REPLIES)
    def test_a_reply_is_the_same_however_it_is_cut(self, parser, reply):
        """The next call then reads its own reply."""
        value = REPLIES[reply]
        if parser is _RESP3Parser and value is None:
            reply = b"_\r\n"
        for pieces in cuts(reply):
            with FakeSession(*pieces, *pieces, b"$4\r\nnext\r\n", parser=parser) as line:
                assert value == line.start()
                assert value == line.start()
                assert b"next" == line.start()
                assert 1 == line.made

    def test_an_error_reply_is_raised_and_keeps_the_connection(self, parser):
        """redis-py raises it, however it is cut."""
        for pieces in cuts(b"-NOSCRIPT No matching script.\r\n"):
            with FakeSession(*pieces, b"$4\r\nnext\r\n", parser=parser) as line:
                with pytest.raises(redis.exceptions.NoScriptError, match="No matching script"):
                    line.start()
                assert b"next" == line.start()
                assert 1 == line.made

    def test_a_connection_that_ends_inside_a_reply_leaves_the_outcome_unknown(self, parser):
        """Even if it ends after a complete line, the server has not answered."""
        reply = b"$6\r\nab\r\nde\r\n"
        for at in range(len(reply)):
            with FakeSession(reply[:at], parser=parser) as line:
                with pytest.raises(redis.ConnectionError) as caught:
                    line.start()
                assert line.connection.sent
                assert Failure.UNKNOWN is classify(caught.value, line.connection.sent)

    def test_a_large_reply_is_assembled_without_copying_pieces_again(self, parser):
        """Otherwise the time would grow with the square of the size."""
        value = bytes(range(256)) * 20_000
        reply = b"$%d\r\n%b\r\n" % (len(value), value)
        pieces = [reply[at : at + 50_000] for at in range(0, len(reply), 50_000)]
        with FakeSession(*pieces, b"$4\r\nnext\r\n", parser=parser) as line:
            assert value == line.start()
            assert len(pieces) == len(line.socket.asked)
            assert b"next" == line.start()
            assert [] == line.parsed

    def test_a_large_reply_may_be_left_to_the_parser(self, parser):
        """The parser of redis-py may read replies of any size, too."""
        value = bytes(range(256)) * 2_000
        with FakeSession(b"*1\r\n$%d\r\n%b\r\n" % (len(value), value), parser=parser) as line:
            assert [value] == line.start()

    def test_a_connection_that_breaks_raises_as_in_redis_py_and_is_dropped(self, parser):
        """Users know the messages of redis-py."""
        for before in ([], [b"$5\r"], [b"$5\r\nhel"]):
            with FakeSession(
                *before, ConnectionResetError(104, "reset by peer"), parser=parser
            ) as line:
                with pytest.raises(redis.ConnectionError, match=r"while reading from .*reset by"):
                    line.start()
                assert line.connection.sent
                assert line.connection._connection is None

    def test_a_connection_that_breaks_while_sending_is_dropped(self, parser):
        """The command may have arrived, so it counts as sent."""
        with FakeSession(parser=parser) as line:
            line.socket.full = BrokenPipeError(32, "Broken pipe")
            with pytest.raises(redis.ConnectionError, match=r"while writing to .*Broken pipe"):
                line.start()
            assert line.connection.sent
            assert line.connection._connection is None

    def test_a_silent_server_raises_a_timeout(self, parser):
        """This holds for reading and for writing."""
        with FakeSession(TimeoutError("timed out"), parser=parser) as line:
            with pytest.raises(redis.TimeoutError):
                line.start()
            assert line.connection._connection is None
            line.socket.full = TimeoutError("timed out")
            with pytest.raises(redis.TimeoutError, match="Timeout writing"):
                line.start()
            assert line.connection.sent


def test_reads_only_bulk_strings_without_the_parser():
    """The scripts of the hot path reply with one string."""
    for reply in REPLIES:
        with FakeSession(reply, b"$4\r\nnext\r\n") as line:
            line.start()
            assert (not reply.startswith(b"$") or reply == b"$-1\r\n") == bool(line.parsed)
            line.parsed.clear()
            assert b"next" == line.start()
            assert [] == line.parsed


def test_leaves_a_string_of_the_wrong_length_to_the_parser():
    """redis-py then raises its own error."""
    with FakeSession(b"$5\r\nhello!!") as line:
        line.start()
        assert line.parsed


class TestPushes:
    """With RESP3 a server may send messages that no command asked for."""

    def test_skips_a_push_before_the_reply(self):
        """A push is not the reply."""
        for pieces in cuts(PUSH + b"$5\r\nhello\r\n"):
            with FakeSession(*pieces, b"$4\r\nnext\r\n", parser=_RESP3Parser) as line:
                assert b"hello" == line.start()
                assert b"next" == line.start()

    def test_skips_a_push_after_the_reply(self):
        """The push is not the reply to the next command, and the call does not wait for it."""
        for pieces in cuts(b"$5\r\nhello\r\n" + PUSH):
            with FakeSession(*pieces, b"$4\r\nnext\r\n", parser=_RESP3Parser) as line:
                assert b"hello" == line.start()
                assert line.socket.pieces, "waited for more than the reply"
                assert b"next" == line.start()

    def test_skips_a_push_that_arrives_in_parts(self):
        """The end of a push must not be taken for the next reply."""
        for first in (PUSH + b"$5\r\nhello\r\n", b"$5\r\nhello\r\n"):
            for at in range(1, len(PUSH)):
                pieces = (first + PUSH[:at], PUSH[at:], b"$4\r\nnext\r\n")
                with FakeSession(*pieces, parser=_RESP3Parser) as line:
                    assert b"hello" == line.start()
                    assert b"next" == line.start()

    def test_resp2_refuses_a_push_and_drops_the_connection(self):
        """After an unexpected message, replies would be shifted by one."""
        with FakeSession(PUSH + b"$5\r\nhello\r\n") as line:
            with pytest.raises(redis.exceptions.InvalidResponse):
                line.start()
            assert line.connection._connection is None


class TestDeadlines:
    """An exchange ends at its deadline, however long the single steps take."""

    @pytest.mark.parametrize("head", [b"", b"$", b"$99999\r\n", b"*", b"*9\r\n$99\r\n"])
    def test_a_reply_that_comes_byte_by_byte_ends_at_the_deadline(self, monkeypatch, head):
        """A socket's own timeout starts again with each byte."""
        clock = itertools.count(1000.0, 0.01)
        monkeypatch.setattr("dtimer.store.connection.sockets.time.monotonic", clock.__next__)
        with FakeSession(head or b"$", *[b"1"] * 2000) as line:
            with pytest.raises(redis.TimeoutError):
                line.start(1010.0)
            # One step of the clock a read, and a few before the first.
            assert 900 < len(line.socket.asked) <= 1000

    def test_each_step_gets_the_time_that_is_left(self, monkeypatch):
        """Otherwise the steps together could take longer than the deadline."""
        clock = itertools.count(1000.0, 0.25)
        monkeypatch.setattr("dtimer.store.connection.sockets.time.monotonic", clock.__next__)
        with FakeSession(b"$5\r\n", b"hel", b"lo\r\n") as line:
            line.start(1010.0)
            assert [9.75, 9.5, 9.25, 9.0] == line.socket.timeouts

    def test_sets_the_socket_timeout_only_when_it_changes(self, monkeypatch):
        """Setting it costs a system call."""
        monkeypatch.setattr("dtimer.store.connection.sockets.time.monotonic", lambda: 1000.0)
        with FakeSession(*[b"$1\r\na\r\n"] * 9) as line:
            line.start(1003.0)
            line.start(1003.0)
            line.start(1003.0005)
            assert [3.0] == line.socket.timeouts
            line.start(1002.0)
            assert [3.0, 2.0] == line.socket.timeouts

    def test_sets_the_timeout_again_after_redis_py_changed_it(self, monkeypatch):
        """redis-py sets timeouts of its own, for example to check a connection."""
        monkeypatch.setattr("dtimer.store.connection.sockets.time.monotonic", lambda: 1000.0)
        with FakeSession(*[b"$1\r\na\r\n"] * 9) as line:
            line.start(1003.0)
            line.connection._connection._sock.settimeout(0)
            line.start(1003.0)
            assert [3.0, 0, 3.0] == line.socket.timeouts


class TestSlow:
    """
    While bytes arrive, an attempt continues up to a limit, because a repetition
    would start again.
    """

    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that advances by a second with each reading."""
        clock = itertools.count(1000.0)
        monkeypatch.setattr("dtimer.store.connection.sockets.time.monotonic", clock.__next__)
        return clock

    @pytest.mark.usefixtures("clock")
    @pytest.mark.parametrize("head", [b"$40\r\n", b"*1\r\n$40\r\n"])
    def test_reads_a_steady_reply_beyond_the_end_of_the_attempt(self, head):
        """A slow connection would otherwise never receive a large reply."""
        with FakeSession(head, *[b"1"] * 40, b"\r\n") as line:
            assert line.start(1003.0, 1100.0) in (b"1" * 40, [b"1" * 40])

    @pytest.mark.usefixtures("clock")
    @pytest.mark.parametrize("head", [b"$99999\r\n", b"*9\r\n$99\r\n"])
    def test_never_reads_beyond_the_deadline_of_the_call(self, head):
        """A server that sends a byte now and then must not hold the caller."""
        with FakeSession(head, *[b"1"] * 2000) as line:
            with pytest.raises(redis.TimeoutError):
                line.start(1003.0, 1100.0)
            assert 50 < len(line.socket.asked) <= 100

    @pytest.mark.usefixtures("clock")
    def test_waits_between_two_bytes_no_longer_than_for_the_first(self):
        """Silence means that the connection has stalled."""
        with FakeSession(b"$9\r\n", b"123", b"456", b"789\r\n") as line:
            line.start(1010.0, 1100.0)
            assert max(line.socket.timeouts) < 10.0

    @pytest.mark.usefixtures("clock")
    def test_a_server_that_sends_nothing_is_given_up_after_the_attempt(self):
        """The longer limit holds only while bytes arrive."""
        with FakeSession(TimeoutError("timed out")) as line:
            with pytest.raises(redis.TimeoutError):
                line.start(1010.0, 1100.0)
            assert max(line.socket.timeouts) < 10.0
            assert 0 == line.connection.arrived

    @pytest.mark.parametrize("parser", PARSERS)
    @pytest.mark.parametrize("head", [b"$99\r\n", b"*1\r\n$99\r\n"])
    def test_reports_how_many_bytes_arrived(self, parser, head):
        """The next claim asks for as much as the connection can carry."""
        with FakeSession(head, b"1" * 30, TimeoutError("timed out"), parser=parser) as line:
            with pytest.raises(redis.TimeoutError):
                line.start()
            assert line.connection.arrived == len(head) + 30

    @pytest.mark.usefixtures("clock")
    def test_sends_a_large_request_in_pieces_beyond_the_end_of_the_attempt(self):
        """Each piece may take its time."""
        with FakeSession(b"$2\r\nok\r\n") as line:
            assert b"ok" == line.start(1004.0, 1100.0, "x" * 5_000_000)
            assert len(line.socket.sizes) > 10
            assert max(line.socket.sizes) <= 262_144

    def test_waits_longer_for_the_reply_to_a_large_request(self, monkeypatch):
        """A request that counts as sent may still be under way."""
        monkeypatch.setattr("dtimer.store.connection.sockets.time.monotonic", lambda: 1000.0)
        with FakeSession(*[b"$2\r\nok\r\n"] * 2) as line:
            line.start(1002.0, 1006.0)
            line.start(1002.0, 1006.0, "x" * 100_000)
            assert [2.0, 4.0] == line.socket.timeouts


class Careful(redis.Connection):
    """A user's subclass of a connection that changes how replies are read."""

    def read_response(self, *args, **kwargs):
        return b"read: " + super().read_response(*args, **kwargs)


def test_a_users_connection_class_reads_its_own_replies():
    """Reading directly would bypass the user's code."""
    with FakeSession(b"$5\r\nhello\r\n", base=Careful) as line:
        assert b"read: hello" == line.start()
        assert fast_socket(line.connection._connection) is None
