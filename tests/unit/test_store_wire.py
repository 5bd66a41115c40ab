"""Replies that are read past the library's parser, and those that are left to it."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import time

import pytest
import redis
from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser

from dtimer.store.deadline import straight, with_deadline
from dtimer.store.faults import Fate, fate
from dtimer.store.keys import Keys
from dtimer.store.scripts import load
from dtimer.store.wire import Packer, Wire

PARSERS = [_RESP2Parser, _RESP3Parser]
if importlib.util.find_spec("hiredis"):
    PARSERS.append(_HiredisParser)

PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"

#: What a server may say, and what a call then returns.
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
    """A socket on which come the given pieces, one a read; an exception among them is raised."""

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


class Line:
    """A wire to such a socket."""

    def __init__(self, *pieces, parser=_RESP2Parser, base=redis.Connection) -> None:
        self.socket = Scripted(pieces)
        self.made = 0
        self.parsed = parsed = []
        line = self

        class Connection(base):
            def _connect(self):
                return line.connect()

        class Parser(parser):
            def read_response(self, *args, **kwargs):
                parsed.append(self)
                return super().read_response(*args, **kwargs)

        def make():
            return with_deadline(Connection)(
                parser_class=Parser,
                protocol=3 if parser is _RESP3Parser else 2,
                redis_connect_func=lambda c: c._parser.on_connect(c),
            )

        self.wire = Wire(make, Packer(Keys.of("ns")))

    def connect(self):
        self.made += 1
        return self.socket

    def ask(self, until=None, limit=None, id="id"):
        if until is None:
            until = time.monotonic() + 100
        return self.wire.run(load("peek"), ["", "", id], until, limit)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wire.close()
        self.socket.close()


def cuts(reply):
    """All ways to cut a reply in two, and byte by byte."""
    yield [reply]
    for at in range(1, len(reply)):
        yield [reply[:at], reply[at:]]
    yield [reply[at : at + 1] for at in range(len(reply))]


@pytest.mark.parametrize("parser", PARSERS)
class TestReplies:
    """What a call returns does not depend on who reads it, nor on how the bytes arrive."""

    @pytest.mark.parametrize("reply", REPLIES)
    def test_in_pieces(self, parser, reply):
        """However a reply is cut, it is the same, and the next finds its own."""
        value = REPLIES[reply]
        if parser is _RESP3Parser and value is None:
            reply = b"_\r\n"
        for pieces in cuts(reply):
            with Line(*pieces, *pieces, b"$4\r\nnext\r\n", parser=parser) as line:
                assert value == line.ask()
                assert value == line.ask()
                assert b"next" == line.ask()
                assert 1 == line.made

    def test_an_error(self, parser):
        """An error reply is raised by the library, however it is cut, and ends no connection."""
        for pieces in cuts(b"-NOSCRIPT No matching script.\r\n"):
            with Line(*pieces, b"$4\r\nnext\r\n", parser=parser) as line:
                with pytest.raises(redis.exceptions.NoScriptError, match="No matching script"):
                    line.ask()
                assert b"next" == line.ask()
                assert 1 == line.made

    def test_an_end(self, parser):
        """A server that hangs up within a reply, even at an end of a line, has not answered."""
        reply = b"$6\r\nab\r\nde\r\n"
        for at in range(len(reply)):
            with Line(reply[:at], parser=parser) as line:
                with pytest.raises(redis.ConnectionError) as caught:
                    line.ask()
                assert line.wire.sent
                assert Fate.UNKNOWN is fate(caught.value, line.wire.sent)

    def test_a_large_one(self, parser):
        """A reply of megabytes is put together from its pieces, each of which is touched once."""
        value = bytes(range(256)) * 20_000
        reply = b"$%d\r\n%b\r\n" % (len(value), value)
        pieces = [reply[at : at + 50_000] for at in range(0, len(reply), 50_000)]
        with Line(*pieces, b"$4\r\nnext\r\n", parser=parser) as line:
            assert value == line.ask()
            assert len(pieces) == len(line.socket.asked)
            assert b"next" == line.ask()
            assert [] == line.parsed

    def test_a_large_one_that_is_left(self, parser):
        """What the library has to read may be of any size, too."""
        value = bytes(range(256)) * 2_000
        with Line(b"*1\r\n$%d\r\n%b\r\n" % (len(value), value), parser=parser) as line:
            assert [value] == line.ask()

    def test_a_failure(self, parser):
        """A connection that breaks does so in the words of the library, and is dropped."""
        for before in ([], [b"$5\r"], [b"$5\r\nhel"]):
            with Line(*before, ConnectionResetError(104, "reset by peer"), parser=parser) as line:
                with pytest.raises(redis.ConnectionError, match=r"while reading from .*reset by"):
                    line.ask()
                assert line.wire.sent
                assert line.wire._connection is None

    def test_a_failure_to_send(self, parser):
        """So does one that breaks before the command has gone out as a whole."""
        with Line(parser=parser) as line:
            line.socket.full = BrokenPipeError(32, "Broken pipe")
            with pytest.raises(redis.ConnectionError, match=r"while writing to .*Broken pipe"):
                line.ask()
            assert line.wire.sent
            assert line.wire._connection is None

    def test_a_time_out(self, parser):
        """A server that is silent is met as the library's time-out, a full line as well."""
        with Line(TimeoutError("timed out"), parser=parser) as line:
            with pytest.raises(redis.TimeoutError):
                line.ask()
            assert line.wire._connection is None
            line.socket.full = TimeoutError("timed out")
            with pytest.raises(redis.TimeoutError, match="Timeout writing"):
                line.ask()
            assert line.wire.sent


def test_no_parser():
    """A string of bytes is read without the library's parser, and nothing else is."""
    for reply in REPLIES:
        with Line(reply, b"$4\r\nnext\r\n") as line:
            line.ask()
            assert (not reply.startswith(b"$") or reply == b"$-1\r\n") == bool(line.parsed)
            line.parsed.clear()
            assert b"next" == line.ask()
            assert [] == line.parsed


def test_what_is_not_as_it_says():
    """A string that does not end where it says that it does is the library's to judge."""
    with Line(b"$5\r\nhello!!") as line:
        line.ask()
        assert line.parsed


class TestPushes:
    """With a newer protocol a server may say something that nobody has asked for."""

    def test_before(self):
        """What is said before the reply is no reply."""
        for pieces in cuts(PUSH + b"$5\r\nhello\r\n"):
            with Line(*pieces, b"$4\r\nnext\r\n", parser=_RESP3Parser) as line:
                assert b"hello" == line.ask()
                assert b"next" == line.ask()

    def test_behind(self):
        """What is said behind it is no part of it, and not the next."""
        for pieces in cuts(b"$5\r\nhello\r\n" + PUSH):
            with Line(*pieces, b"$4\r\nnext\r\n", parser=_RESP3Parser) as line:
                assert b"hello" == line.ask()
                assert line.socket.pieces, "it was waited for more than there had to come"
                assert b"next" == line.ask()

    def test_part_of_one(self):
        """The end of one whose beginning came with a reply is not taken for the next reply."""
        for first in (PUSH + b"$5\r\nhello\r\n", b"$5\r\nhello\r\n"):
            for at in range(1, len(PUSH)):
                pieces = (first + PUSH[:at], PUSH[at:], b"$4\r\nnext\r\n")
                with Line(*pieces, parser=_RESP3Parser) as line:
                    assert b"hello" == line.ask()
                    assert b"next" == line.ask()

    def test_of_the_older_protocol(self):
        """A parser that knows no pushes refuses them, and the connection is dropped."""
        with Line(PUSH + b"$5\r\nhello\r\n") as line:
            with pytest.raises(redis.exceptions.InvalidResponse):
                line.ask()
            assert line.wire._connection is None


class TestDeadlines:
    """An exchange ends when its deadline does, whatever the single steps take."""

    @pytest.mark.parametrize("head", [b"", b"$", b"$99999\r\n", b"*", b"*9\r\n$99\r\n"])
    def test_trickling(self, monkeypatch, head):
        """A reply that comes byte by byte is not waited for beyond the deadline."""
        clock = itertools.count(1000.0, 0.01)
        monkeypatch.setattr("dtimer.store.sockets.time.monotonic", clock.__next__)
        with Line(head or b"$", *[b"1"] * 2000) as line:
            with pytest.raises(redis.TimeoutError):
                line.ask(1010.0)
            # A step of the clock for each of them, and a few for what goes before.
            assert 900 < len(line.socket.asked) <= 1000

    def test_what_is_left(self, monkeypatch):
        """Each step is given what is left of the time, to a millisecond; none is given more."""
        clock = itertools.count(1000.0, 0.25)
        monkeypatch.setattr("dtimer.store.sockets.time.monotonic", clock.__next__)
        with Line(b"$5\r\n", b"hel", b"lo\r\n") as line:
            line.ask(1010.0)
            assert [9.75, 9.5, 9.25, 9.0] == line.socket.timeouts

    def test_set_when_it_has_changed(self, monkeypatch):
        """The time-out of the socket is set when it differs, and not for each step."""
        monkeypatch.setattr("dtimer.store.sockets.time.monotonic", lambda: 1000.0)
        with Line(*[b"$1\r\na\r\n"] * 9) as line:
            line.ask(1003.0)
            line.ask(1003.0)
            line.ask(1003.0005)
            assert [3.0] == line.socket.timeouts
            line.ask(1002.0)
            assert [3.0, 2.0] == line.socket.timeouts

    def test_one_that_the_library_has_set(self, monkeypatch):
        """A time-out that the library has set for itself is set anew for the next step."""
        monkeypatch.setattr("dtimer.store.sockets.time.monotonic", lambda: 1000.0)
        with Line(*[b"$1\r\na\r\n"] * 9) as line:
            line.ask(1003.0)
            line.wire._connection._sock.settimeout(0)
            line.ask(1003.0)
            assert [3.0, 0, 3.0] == line.socket.timeouts


class TestSlow:
    """While bytes are on the move a try lasts, up to its limit: another would begin anew."""

    @pytest.fixture
    def clock(self, monkeypatch):
        """A clock that goes on by a second with each look at it."""
        clock = itertools.count(1000.0)
        monkeypatch.setattr("dtimer.store.sockets.time.monotonic", clock.__next__)
        return clock

    @pytest.mark.usefixtures("clock")
    @pytest.mark.parametrize("head", [b"$40\r\n", b"*1\r\n$40\r\n"])
    def test_waits_for_what_arrives(self, head):
        """A reply that arrives steadily is read to its end, though the try was to end before."""
        with Line(head, *[b"1"] * 40, b"\r\n") as line:
            assert line.ask(1003.0, 1100.0) in (b"1" * 40, [b"1" * 40])

    @pytest.mark.usefixtures("clock")
    @pytest.mark.parametrize("head", [b"$99999\r\n", b"*9\r\n$99\r\n"])
    def test_not_beyond_the_limit(self, head):
        """A server that sends a byte now and then keeps nobody beyond the deadline of a call."""
        with Line(head, *[b"1"] * 2000) as line:
            with pytest.raises(redis.TimeoutError):
                line.ask(1003.0, 1100.0)
            assert 50 < len(line.socket.asked) <= 100

    @pytest.mark.usefixtures("clock")
    def test_no_longer_in_silence(self):
        """Between two bytes no more time is given than there was for the first."""
        with Line(b"$9\r\n", b"123", b"456", b"789\r\n") as line:
            line.ask(1010.0, 1100.0)
            assert max(line.socket.timeouts) < 10.0

    @pytest.mark.usefixtures("clock")
    def test_silence_before_the_first_byte(self):
        """A server that says nothing is given up when the try is over."""
        with Line(TimeoutError("timed out")) as line:
            with pytest.raises(redis.TimeoutError):
                line.ask(1010.0, 1100.0)
            assert max(line.socket.timeouts) < 10.0
            assert 0 == line.wire.arrived

    @pytest.mark.parametrize("parser", PARSERS)
    @pytest.mark.parametrize("head", [b"$99\r\n", b"*1\r\n$99\r\n"])
    def test_tells_how_much_arrived(self, parser, head):
        """Whoever asks again knows what the connection was good for."""
        with Line(head, b"1" * 30, TimeoutError("timed out"), parser=parser) as line:
            with pytest.raises(redis.TimeoutError):
                line.ask()
            assert line.wire.arrived == len(head) + 30

    @pytest.mark.usefixtures("clock")
    def test_sends_as_long_as_it_is_taken(self):
        """A large request is sent in pieces, each of which may take its time."""
        with Line(b"$2\r\nok\r\n") as line:
            assert b"ok" == line.ask(1004.0, 1100.0, "x" * 5_000_000)
            assert len(line.socket.sizes) > 10
            assert max(line.socket.sizes) <= 262_144

    def test_waits_longer_for_the_reply_to_much(self, monkeypatch):
        """When it counts as sent much of a large request may yet be under way."""
        monkeypatch.setattr("dtimer.store.sockets.time.monotonic", lambda: 1000.0)
        with Line(*[b"$2\r\nok\r\n"] * 2) as line:
            line.ask(1002.0, 1006.0)
            line.ask(1002.0, 1006.0, "x" * 100_000)
            assert [2.0, 4.0] == line.socket.timeouts


class Careful(redis.Connection):
    """A connection of somebody who reads in a way of his own."""

    def read_response(self, *args, **kwargs):
        return b"read: " + super().read_response(*args, **kwargs)


def test_a_connection_of_somebody_else():
    """What a user has made of the library's connection is not passed by."""
    with Line(b"$5\r\nhello\r\n", base=Careful) as line:
        assert b"read: hello" == line.ask()
        assert straight(line.wire._connection) is None
