"""Replies that are read directly, and those that are left to redis-py's parser."""

import importlib.util
import itertools
import socket
import time

import pytest
import redis
from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser

from dtimer.store.connection.connection import Connection, Packer
from dtimer.store.connection.deadline import with_deadline
from dtimer.store.failures import Failure, classify
from dtimer.store.keys import Keys
from dtimer.store.scripts import load

PARSERS = [_RESP2Parser, _RESP3Parser]
if importlib.util.find_spec("hiredis"):
    PARSERS.append(_HiredisParser)

PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n"
HELLO = b"$5\r\nhello\r\n"
NEXT = b"$4\r\nnext\r\n"

#: Replies of a server, and the result of the call.
REPLIES = {
    HELLO: b"hello",
    b"$0\r\n\r\n": b"",
    b"$12\r\na\r\n$3\r\nabc\r\n\r\n": b"a\r\n$3\r\nabc\r\n",
    b"$-1\r\n": None,
    b":7\r\n": 7,
    b"+OK\r\n": b"OK",
    b"*-1\r\n": None,
    b"*3\r\n$1\r\na\r\n:2\r\n*1\r\n$1\r\nb\r\n": [b"a", 2, [b"b"]],
}


class ScriptedSocket(socket.socket):
    """A socket that receives the given pieces, one a read, and raises the exceptions among them."""

    def __init__(self, pieces) -> None:
        super().__init__()
        self.pieces = list(pieces)
        self.timeouts = []
        self.reads = 0
        self.sent_sizes = []
        self.send_error = None

    def settimeout(self, seconds):
        self.timeouts.append(seconds)

    def sendall(self, data, *_):
        if self.send_error:
            raise self.send_error

    def send(self, data, *_):
        self.sent_sizes.append(len(data))
        self.sendall(data)
        return len(data)

    def recv(self, size, *_):
        self.reads += 1
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


class ScriptedConnection:
    """A connection over a `ScriptedSocket`, and the replies that redis-py's parser has read."""

    def __init__(self, *pieces, parser=_RESP2Parser, base=redis.Connection) -> None:
        self.socket = ScriptedSocket(pieces)
        self.connects = 0
        self.parsed = parsed = []
        scripted = self

        class FakeConnection(base):
            def _connect(self):
                scripted.connects += 1
                return scripted.socket

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

    @property
    def dropped(self):
        """Return True if the connection has been given up."""
        return self.connection._connection is None

    def call(self, attempt_end=None, deadline=None, id="id"):
        """Run a script, and return its result."""
        if attempt_end is None:
            attempt_end = time.monotonic() + 100
        return self.connection.run(load("peek"), ["", "", id], attempt_end, deadline)

    def call_fails(self, error, *times, match=None):
        """Run a script, which raises *error*; return that error."""
        with pytest.raises(error, match=match) as caught:
            self.call(*times)
        return caught.value

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.socket.close()


def cuts(reply):
    """Yield the reply in one piece, cut in two at every place, and byte by byte."""
    yield [reply]
    for at in range(1, len(reply)):
        yield [reply[:at], reply[at:]]
    yield [reply[at : at + 1] for at in range(len(reply))]


@pytest.fixture
def set_clock(monkeypatch):
    """Return a function that makes the connection read the given moments from the clock."""

    def set_clock(moments):
        monkeypatch.setattr("dtimer.store.connection.sockets.time.monotonic", lambda: next(moments))

    return set_clock


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
            with ScriptedConnection(*pieces, *pieces, NEXT, parser=parser) as scripted:
                assert [value, value, b"next"] == [scripted.call() for _ in range(3)]
                assert 1 == scripted.connects

    def test_an_error_reply_is_raised_and_keeps_the_connection(self, parser):
        """redis-py raises its own error, however the reply is cut."""
        for pieces in cuts(b"-NOSCRIPT No matching script.\r\n"):
            with ScriptedConnection(*pieces, NEXT, parser=parser) as scripted:
                scripted.call_fails(redis.exceptions.NoScriptError, match="No matching script")
                assert b"next" == scripted.call()
                assert 1 == scripted.connects

    def test_a_connection_that_ends_inside_a_reply_leaves_the_outcome_unknown(self, parser):
        """Even if it ends after a complete line, the server has not answered."""
        reply = b"$6\r\nab\r\nde\r\n"
        for at in range(len(reply)):
            with ScriptedConnection(reply[:at], parser=parser) as scripted:
                error = scripted.call_fails(redis.ConnectionError)
                assert scripted.connection.sent
                assert Failure.UNKNOWN is classify(error, scripted.connection.sent)

    def test_a_large_reply_is_assembled_without_copying_pieces_again(self, parser):
        """If each piece copied those before it, the time would grow with the square of the size."""
        value = bytes(range(256)) * 20_000
        reply = b"$%d\r\n%b\r\n" % (len(value), value)
        pieces = [reply[at : at + 50_000] for at in range(0, len(reply), 50_000)]
        with ScriptedConnection(*pieces, NEXT, parser=parser) as scripted:
            assert value == scripted.call()
            assert len(pieces) == scripted.socket.reads
            assert b"next" == scripted.call()
            assert [] == scripted.parsed

    def test_a_large_reply_may_be_left_to_the_parser(self, parser):
        """The parser of redis-py may read replies of any size, too."""
        value = bytes(range(256)) * 2_000
        with ScriptedConnection(
            b"*1\r\n$%d\r\n%b\r\n" % (len(value), value), parser=parser
        ) as scripted:
            assert [value] == scripted.call()

    @pytest.mark.parametrize("received", [[], [b"$5\r"], [b"$5\r\nhel"]])
    def test_a_connection_that_breaks_raises_as_in_redis_py_and_is_dropped(self, parser, received):
        """Users know the messages of redis-py."""
        with ScriptedConnection(
            *received, ConnectionResetError(104, "reset by peer"), parser=parser
        ) as scripted:
            scripted.call_fails(redis.ConnectionError, match=r"while reading from .*reset by")
            assert scripted.connection.sent
            assert scripted.dropped

    def test_a_connection_that_breaks_while_sending_is_dropped(self, parser):
        """The command may have arrived, so it counts as sent."""
        with ScriptedConnection(parser=parser) as scripted:
            scripted.socket.send_error = BrokenPipeError(32, "Broken pipe")
            scripted.call_fails(redis.ConnectionError, match=r"while writing to .*Broken pipe")
            assert scripted.connection.sent
            assert scripted.dropped

    def test_a_silent_server_raises_a_timeout(self, parser):
        """A call must end, whether it waits to read or to write."""
        with ScriptedConnection(TimeoutError("timed out"), parser=parser) as scripted:
            scripted.call_fails(redis.TimeoutError)
            assert scripted.dropped
            scripted.socket.send_error = TimeoutError("timed out")
            scripted.call_fails(redis.TimeoutError, match="Timeout writing")
            assert scripted.connection.sent


@pytest.mark.parametrize("parser", PARSERS)
class TestServerTime:
    """The server's time after a script, asked for in the same write."""

    TIME = b"*2\r\n$10\r\n1764540000\r\n$3\r\n250\r\n"

    def ask(self, scripted):
        """Run a script with the time; return its result, and the time."""
        until = time.monotonic() + 100
        scripted.connection.send(load("peek"), ["", "", "id"], until, with_time=True)
        return scripted.connection.receive(until), scripted.connection.ended_us

    @pytest.mark.parametrize("reply", [HELLO, b"$0\r\n\r\n", b":7\r\n"])
    def test_both_replies_are_the_same_however_they_are_cut(self, parser, reply):
        """The next call then reads its own reply, and has no time."""
        expected = (REPLIES[reply], 1764540000_000250)
        for pieces in cuts(reply + self.TIME):
            with ScriptedConnection(*pieces, *pieces, NEXT, parser=parser) as scripted:
                assert [expected, expected] == [self.ask(scripted) for _ in range(2)]
                assert b"next" == scripted.call()
                assert None is scripted.connection.ended_us
                assert 1 == scripted.connects

    def test_the_time_behind_an_error_reply_is_read_as_well(self, parser):
        """The next call would take it for its own reply."""
        for pieces in cuts(b"-NOSCRIPT No matching script.\r\n" + self.TIME):
            with ScriptedConnection(*pieces, NEXT, parser=parser) as scripted:
                with pytest.raises(redis.exceptions.NoScriptError):
                    self.ask(scripted)
                assert b"next" == scripted.call()
                assert 1 == scripted.connects

    @pytest.mark.parametrize("missing", [1, 10, len(TIME) - 1, len(TIME)])
    def test_a_connection_that_ends_before_the_time_leaves_the_outcome_unknown(
        self, parser, missing
    ):
        """The claim is sent again, and acts once."""
        with ScriptedConnection((HELLO + self.TIME)[:-missing], parser=parser) as scripted:
            with pytest.raises(redis.exceptions.ConnectionError) as caught:
                self.ask(scripted)
            assert Failure.UNKNOWN is classify(caught.value, sent=True)
            assert scripted.dropped

    def test_a_server_that_refuses_the_command_gives_no_time(self, parser):
        """The claim has succeeded: the node counts from the beginning of the script, as before."""
        refused = b"-NOPERM this user has no permissions to run the 'time' command\r\n"
        for pieces in cuts(HELLO + refused):
            with ScriptedConnection(*pieces, NEXT, parser=parser) as scripted:
                assert (b"hello", None) == self.ask(scripted)
                assert b"next" == scripted.call()
                assert 1 == scripted.connects


def test_reads_only_bulk_strings_without_the_parser():
    """The scripts of the hot path reply with one string."""
    for reply in REPLIES:
        with ScriptedConnection(reply, NEXT) as scripted:
            scripted.call()
            assert (not reply.startswith(b"$") or reply == b"$-1\r\n") == bool(scripted.parsed)
            scripted.parsed.clear()
            assert b"next" == scripted.call()
            assert [] == scripted.parsed


def test_leaves_a_string_of_the_wrong_length_to_the_parser():
    """redis-py then raises its own error."""
    with ScriptedConnection(b"$5\r\nhello!!") as scripted:
        scripted.call()
        assert scripted.parsed


class TestPushes:
    """With RESP3 a server may send messages that no command asked for."""

    def test_skips_a_push_before_the_reply(self):
        """A push is not the reply."""
        for pieces in cuts(PUSH + HELLO):
            with ScriptedConnection(*pieces, NEXT, parser=_RESP3Parser) as scripted:
                assert [b"hello", b"next"] == [scripted.call(), scripted.call()]

    def test_skips_a_push_after_the_reply(self):
        """The push is not the reply to the next command, and the call does not wait for it."""
        for pieces in cuts(HELLO + PUSH):
            with ScriptedConnection(*pieces, NEXT, parser=_RESP3Parser) as scripted:
                assert b"hello" == scripted.call()
                assert scripted.socket.pieces, "waited for more than the reply"
                assert b"next" == scripted.call()

    @pytest.mark.parametrize("before", [PUSH + HELLO, HELLO], ids=["second push", "first push"])
    def test_skips_a_push_that_arrives_in_parts(self, before):
        """The end of a push must not be taken for the next reply."""
        for at in range(1, len(PUSH)):
            with ScriptedConnection(
                before + PUSH[:at], PUSH[at:], NEXT, parser=_RESP3Parser
            ) as scripted:
                assert [b"hello", b"next"] == [scripted.call(), scripted.call()]

    def test_resp2_refuses_a_push_and_drops_the_connection(self):
        """After an unexpected message, replies would be shifted by one."""
        with ScriptedConnection(PUSH + HELLO) as scripted:
            scripted.call_fails(redis.exceptions.InvalidResponse)
            assert scripted.dropped


class TestDeadlines:
    """An exchange ends at its deadline, however long the single steps take."""

    @pytest.mark.parametrize("head", [b"$", b"$99999\r\n", b"*", b"*9\r\n$99\r\n"])
    def test_a_reply_that_comes_byte_by_byte_ends_at_the_deadline(self, set_clock, head):
        """A socket's own timeout starts again with each byte."""
        set_clock(itertools.count(1000.0, 0.01))
        with ScriptedConnection(head, *[b"1"] * 2000) as scripted:
            scripted.call_fails(redis.TimeoutError, 1010.0)
            # One step of the clock a read, and a few before the first.
            assert 900 < scripted.socket.reads <= 1000

    def test_each_step_gets_the_time_that_is_left(self, set_clock):
        """With the whole time for each step, all steps together could exceed the deadline."""
        set_clock(itertools.count(1000.0, 0.25))
        with ScriptedConnection(b"$5\r\n", b"hel", b"lo\r\n") as scripted:
            scripted.call(1010.0)
            assert [9.75, 9.5, 9.25, 9.0] == scripted.socket.timeouts

    def test_sets_the_socket_timeout_only_when_it_changes(self, set_clock):
        """Setting it costs a system call. A difference of half a millisecond does not count."""
        set_clock(itertools.repeat(1000.0))
        with ScriptedConnection(*[b"$1\r\na\r\n"] * 9) as scripted:
            for deadline in (1003.0, 1003.0, 1003.0005):
                scripted.call(deadline)
            assert [3.0] == scripted.socket.timeouts
            scripted.call(1002.0)
            assert [3.0, 2.0] == scripted.socket.timeouts

    def test_sets_the_timeout_again_after_redis_py_changed_it(self, set_clock):
        """redis-py sets timeouts of its own, for example to check a connection."""
        set_clock(itertools.repeat(1000.0))
        with ScriptedConnection(*[b"$1\r\na\r\n"] * 9) as scripted:
            scripted.call(1003.0)
            scripted.connection._connection._sock.settimeout(0)
            scripted.call(1003.0)
            assert [3.0, 0, 3.0] == scripted.socket.timeouts


@pytest.mark.usefixtures("ticking")
class TestSlowConnections:
    """While bytes arrive, an attempt continues beyond its end: a repetition would start again."""

    @pytest.fixture
    def ticking(self, set_clock):
        """A clock that advances by a second with each reading."""
        set_clock(itertools.count(1000.0))

    @pytest.mark.parametrize("head", [b"$40\r\n", b"*1\r\n$40\r\n"])
    def test_reads_a_steady_reply_beyond_the_end_of_the_attempt(self, head):
        """A slow connection would otherwise never receive a large reply."""
        with ScriptedConnection(head, *[b"1"] * 40, b"\r\n") as scripted:
            assert scripted.call(1003.0, 1100.0) in (b"1" * 40, [b"1" * 40])

    @pytest.mark.parametrize("head", [b"$99999\r\n", b"*9\r\n$99\r\n"])
    def test_never_reads_beyond_the_deadline_of_the_call(self, head):
        """A server that sends a byte now and then must not hold the caller."""
        with ScriptedConnection(head, *[b"1"] * 2000) as scripted:
            scripted.call_fails(redis.TimeoutError, 1003.0, 1100.0)
            assert 50 < scripted.socket.reads <= 100

    def test_waits_between_two_bytes_no_longer_than_for_the_first(self):
        """Silence means that the connection has stalled."""
        with ScriptedConnection(b"$9\r\n", b"123", b"456", b"789\r\n") as scripted:
            scripted.call(1010.0, 1100.0)
            assert max(scripted.socket.timeouts) < 10.0

    def test_a_server_that_sends_nothing_is_given_up_after_the_attempt(self):
        """The deadline of the call counts only while bytes arrive."""
        with ScriptedConnection(TimeoutError("timed out")) as scripted:
            scripted.call_fails(redis.TimeoutError, 1010.0, 1100.0)
            assert max(scripted.socket.timeouts) < 10.0
            assert 0 == scripted.connection.arrived

    @pytest.mark.parametrize("parser", PARSERS)
    @pytest.mark.parametrize("head", [b"$99\r\n", b"*1\r\n$99\r\n"])
    def test_reports_how_many_bytes_arrived(self, parser, head):
        """The next claim asks for as much as the connection can carry."""
        with ScriptedConnection(
            head, b"1" * 30, TimeoutError("timed out"), parser=parser
        ) as scripted:
            scripted.call_fails(redis.TimeoutError)
            assert scripted.connection.arrived == len(head) + 30

    def test_sends_a_large_request_in_pieces_beyond_the_end_of_the_attempt(self):
        """A slow connection would otherwise never send a large request."""
        with ScriptedConnection(b"$2\r\nok\r\n") as scripted:
            assert b"ok" == scripted.call(1004.0, 1100.0, "x" * 5_000_000)
            assert len(scripted.socket.sent_sizes) > 10
            assert max(scripted.socket.sent_sizes) <= 262_144

    def test_waits_longer_for_the_reply_to_a_large_request(self, set_clock):
        """A request that counts as sent may still be under way."""
        set_clock(itertools.repeat(1000.0))
        with ScriptedConnection(*[b"$2\r\nok\r\n"] * 2) as scripted:
            scripted.call(1002.0, 1006.0)
            scripted.call(1002.0, 1006.0, "x" * 100_000)
            assert [2.0, 4.0] == scripted.socket.timeouts


class PrefixingConnection(redis.Connection):
    """A user's subclass of a connection that changes how replies are read."""

    def read_response(self, *args, **kwargs):
        return b"read: " + super().read_response(*args, **kwargs)


def test_a_users_connection_class_reads_its_own_replies():
    """Reading directly would bypass the user's code."""
    with ScriptedConnection(HELLO, base=PrefixingConnection) as scripted:
        assert b"read: hello" == scripted.call()
        assert scripted.connection._connection.fast_socket is None
