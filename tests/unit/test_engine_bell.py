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

    def test_a_ring_within_a_ring(self, bell):
        """A signal handler may ring the bell while it interrupts a ring."""
        with bell._lock:
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
            low, bell._reader = bell._reader, fcntl.fcntl(bell._reader, fcntl.F_DUPFD, high)
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

    def test_closed_in_the_middle_of_a_ring(self, bell):
        """
        A ring that meets a close() writes to nothing that is not ours: whoever gets the
        freed descriptors finds no byte in them.
        """
        lock = bell._lock
        found = []

        class Late:
            """The lock, which another thread gets first, and closes the bell."""

            def __enter__(self):
                bell._lock = lock
                bell.close()
                reader, writer = os.pipe()
                found.extend((reader, writer))
                lock.acquire()

            def __exit__(self, *_):
                lock.release()

        descriptors = {bell._reader, bell._writer}
        bell._lock = Late()
        bell.ring()
        reader, writer = found
        assert descriptors == {reader, writer}, "they were freed, and given out again"
        os.close(writer)
        assert b"" == os.read(reader, 1)
        os.close(reader)

    def test_forgotten(self):
        """A bell that is dropped closes its descriptors, even where its lock is held."""
        bell = Bell()
        descriptors = bell._reader, bell._writer
        held, let_go = threading.Event(), threading.Event()
        lock = bell._lock

        def hold():
            with lock:
                held.set()
                let_go.wait(PATIENCE)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(PATIENCE)
        del bell
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)
        let_go.set()
        holder.join(PATIENCE)
