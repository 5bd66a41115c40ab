"""System calls that keep the interpreter's lock: their results and their errors."""

import os
import socket
import sys
import threading

import pytest
from background import in_thread
from servers import PATIENCE

from dtimer import syscalls


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    for descriptor in (reader, writer):
        os.set_blocking(descriptor, False)
    yield reader, writer
    for descriptor in (reader, writer):
        os.close(descriptor)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def fill(write, descriptor):
    """Write until that raises."""
    while True:
        write(descriptor, bytes(65_536))


class TestPipe:
    """Calls on a pipe that does not block."""

    def test_reads_what_was_written(self, pipe):
        """Bytes may be zero, too."""
        reader, writer = pipe
        assert 3 == syscalls.write(writer, b"a\0b")
        assert b"a\0" == syscalls.read(reader, 2)
        assert b"b" == syscalls.read(reader, 64)

    def test_an_empty_and_a_full_pipe_do_not_block(self, pipe):
        """A thread that waited here would stop all threads of the process."""
        reader, writer = pipe
        with pytest.raises(BlockingIOError):
            syscalls.read(reader, 1)
        with pytest.raises(BlockingIOError):
            fill(syscalls.write, writer)

    def test_a_closed_descriptor_raises_its_error(self):
        """The bell ignores it, and a connection reports it."""
        with pytest.raises(OSError, match="Bad file descriptor"):
            syscalls.write(-1, b"a")


class TestSocket:
    """Calls on a socket, which itself may block."""

    def test_receives_what_was_sent(self, pair):
        """The buffer may be larger than the message."""
        ours, theirs = pair
        assert 5 == syscalls.send(ours.fileno(), b"he\0lo")
        assert b"he\0lo" == syscalls.recv(theirs.fileno(), 65_536)

    def test_nothing_to_receive_and_full_buffers_do_not_block(self, pair):
        """Also on a socket that blocks otherwise."""
        ours, theirs = pair
        with pytest.raises(BlockingIOError):
            syscalls.recv(ours.fileno(), 1)
        with pytest.raises(BlockingIOError):
            fill(syscalls.send, ours.fileno())
        assert theirs.recv(1)

    def test_a_closed_peer_reads_as_the_end_and_raises_without_a_signal(self, pair):
        """SIGPIPE would end the process."""
        ours, theirs = pair
        theirs.close()
        assert b"" == syscalls.recv(ours.fileno(), 1)
        with pytest.raises(BrokenPipeError):
            syscalls.send(ours.fileno(), b"a")


def test_no_other_thread_runs_during_a_call(pipe):
    """The caller would wait for the interpreter's lock afterwards, for 5 ms a computing thread."""
    reader, writer = pipe
    before = sys.getswitchinterval()
    gate, ran = threading.Lock(), []
    gate.acquire()

    def run():
        with gate:
            ran.append(None)

    waiting = in_thread(run)
    sys.setswitchinterval(1000)
    try:
        # The other thread runs as soon as this one lets go of the interpreter's lock.
        gate.release()
        for _ in range(1000):
            syscalls.write(writer, b"a")
            syscalls.read(reader, 1)
        assert not ran
    finally:
        sys.setswitchinterval(before)
    waiting.result(PATIENCE)
