"""The bell: no ring is lost, whoever rings it, and nobody is harmed by one."""

from __future__ import annotations

import collections
import fcntl
import os
import resource
import select
import threading
import time

import pytest
from servers import PATIENCE

from dtimer.engine.bell import Bell


@pytest.fixture
def bell():
    bell = Bell()
    yield bell
    bell.close()


def readable(descriptor):
    return bool(select.select([descriptor], [], [], 0)[0])


class TestRinging:
    """What a ring is, and how many of them."""

    def test_a_ring_is_kept(self, bell):
        """A ring that comes before the wait is not lost, and is there until it is cleared."""
        assert not bell.wait(0)
        bell.ring()
        assert bell.wait(PATIENCE)
        assert bell.wait(0)
        bell.clear()
        assert not bell.wait(0)

    def test_many_rings_are_one(self, bell):
        """However often it is rung, one clear() is enough, and no ring ever blocks."""
        for _ in range(100_000):
            bell.ring()
        assert bell.wait(0)
        bell.clear()
        assert not bell.wait(0)

    def test_a_nudge_is_no_ring(self, bell):
        """A nudge ends a wait, and is not taken for a ring when the bell is cleared."""
        bell.nudge()
        assert bell.wait(0)
        assert not bell.clear()
        assert not bell.wait(0)
        bell.nudge()
        bell.ring()
        assert bell.clear()
        bell.close()
        bell.nudge()

    def test_a_full_pipe(self, bell):
        """Rings that were written one by one, past the room of the pipe, are one as well."""
        for _ in range(100_000):
            bell._rung = False
            bell.ring()
        bell.clear()
        assert not bell.wait(0)

    def test_the_descriptor(self, bell):
        """While it is rung its descriptor is readable: it can be waited for with others."""
        assert not readable(bell.descriptor)
        bell.ring()
        assert readable(bell.descriptor)

    def test_no_time_left(self, bell):
        """A wait of no or of negative seconds returns at once."""
        assert not bell.wait(-1)
        bell.ring()
        assert bell.wait(-1)

    def test_no_ring_is_lost(self, bell):
        """
        Whoever puts something down and rings, is found: with clear() before the look, no
        interleaving of many ringing threads leaves anything behind.
        """
        work = collections.deque()
        count, ringers = 5_000, 4

        def ring():
            for n in range(count):
                work.append(n)
                bell.ring()

        crew = [threading.Thread(target=ring) for _ in range(ringers)]
        for thread in crew:
            thread.start()
        done = 0
        while done < count * ringers:
            assert bell.wait(PATIENCE), "a ring was lost"
            bell.clear()
            while work:
                work.popleft()
                done += 1
        for thread in crew:
            thread.join(PATIENCE)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_ring_within_a_clear(self, bell, monkeypatch, when):
        """A ring in the middle of clear() may be forgotten, but never stops a later one."""
        read = os.read

        def meanwhile(descriptor, size):
            if when == "before":
                bell.ring()
            try:
                return read(descriptor, size)
            finally:
                if when == "after":
                    bell.ring()

        for rung in (True, False):
            if rung:
                bell.ring()
            monkeypatch.setattr(os, "read", meanwhile)
            bell.clear()
            monkeypatch.undo()
            bell.ring()
            assert bell.wait(0)
            bell.clear()

    def test_a_ring_within_a_ring(self, bell, monkeypatch):
        """A signal handler may ring the bell, and may clear it, while it interrupts a ring."""
        write = os.write
        again = iter([bell.ring, bell.clear])

        def meanwhile(descriptor, data):
            for act in again:
                act()
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", meanwhile)
        bell.ring()
        assert bell.wait(0)


class TestDescriptors:
    """What it opens, and that it closes it."""

    def test_beyond_select(self):
        """With a descriptor over 1023, which select cannot take, it waits as well."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        high = 1_500
        if hard != resource.RLIM_INFINITY and hard <= high:
            high = hard - 1
        assert high > 1_023, "this machine has no such descriptors"
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, high + 1), hard))
        bell = Bell()
        try:
            pipe = bell._pipe
            low, pipe.reader = pipe.reader, fcntl.fcntl(pipe.reader, fcntl.F_DUPFD, high)
            os.close(low)
            with pytest.raises(ValueError, match="out of range"):
                select.select([bell.descriptor], [], [], 0)
            began = time.monotonic()
            assert not bell.wait(0.02)
            assert time.monotonic() - began >= 0.02
            bell.ring()
            assert bell.wait(PATIENCE)
            bell.clear()
            assert not bell.wait(0)
        finally:
            bell.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_closed(self, bell):
        """After close() a ring is harmless, and so is another close()."""
        bell.close()
        bell.close()
        bell.ring()

    def test_closed_in_the_middle_of_a_ring(self, bell, monkeypatch):
        """
        A ring that meets a close() writes to nothing that is not ours: the descriptors are
        closed when no call uses them any more, so nobody is given them before.
        """
        write = os.write
        descriptors = {bell._pipe.reader, bell._pipe.writer}
        others = []

        def meanwhile(descriptor, data):
            bell.close()
            others.extend(os.pipe())
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", meanwhile)
        bell.ring()
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)
        reader, writer = others
        os.close(writer)
        assert b"" == os.read(reader, 1)
        os.close(reader)
        assert descriptors.isdisjoint(others)

    def test_forgotten(self):
        """A bell that is dropped closes its descriptors."""
        bell = Bell()
        descriptors = bell._pipe.reader, bell._pipe.writer
        del bell
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)

    def test_in_a_forked_child(self, bell):
        """
        after_fork() closes the descriptors at once: in a child the frames of the parent's threads
        are not there to end, and so never let go of them.
        """
        descriptors = bell._pipe.reader, bell._pipe.writer
        a_thread_of_the_parent = bell._pipe
        bell.after_fork()
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)
        a_thread_of_the_parent.write()
