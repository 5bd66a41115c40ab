"""The bell: no ring is lost, any thread may ring, and ringing is always safe."""

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
    """Rings, nudges and waits."""

    def test_a_ring_lasts_until_it_is_cleared(self, bell):
        """A ring just before the wait must not be lost."""
        assert not bell.wait(0)
        bell.ring()
        assert bell.wait(PATIENCE)
        assert bell.wait(0)
        bell.clear()
        assert not bell.wait(0)

    def test_many_rings_count_as_one_and_never_block(self, bell):
        """A single clear() is enough, and a full pipe must not block the ringing thread."""
        for _ in range(100_000):
            bell.ring()
        assert bell.wait(0)
        bell.clear()
        assert not bell.wait(0)

    def test_a_nudge_ends_a_wait_but_does_not_count_as_a_ring(self, bell):
        """The claimer only looks at its timers then, and does not claim."""
        bell.nudge()
        assert bell.wait(0)
        assert not bell.clear()
        assert not bell.wait(0)
        bell.nudge()
        bell.ring()
        assert bell.clear()
        bell.close()
        bell.nudge()

    def test_a_full_pipe_counts_as_one_ring(self, bell):
        """Each ring was written to the pipe, beyond its capacity."""
        for _ in range(100_000):
            bell._rung = False
            bell.ring()
        bell.clear()
        assert not bell.wait(0)

    def test_the_descriptor_is_readable_while_rung(self, bell):
        """A thread can wait for the bell together with other descriptors."""
        assert not readable(bell.descriptor)
        bell.ring()
        assert readable(bell.descriptor)

    def test_a_wait_of_zero_or_negative_seconds_returns_at_once(self, bell):
        """Callers pass the time that is left."""
        assert not bell.wait(-1)
        bell.ring()
        assert bell.wait(-1)

    def test_no_work_is_lost_between_many_threads(self, bell):
        """
        Each thread adds work, then rings.

        The waiting thread clears the bell, then looks for work, so no interleaving leaves work
        behind.
        """
        work = collections.deque()
        count, ringers = 5_000, 4

        def ring():
            for n in range(count):
                work.append(n)
                bell.ring()

        threads = [threading.Thread(target=ring) for _ in range(ringers)]
        for thread in threads:
            thread.start()
        done = 0
        while done < count * ringers:
            assert bell.wait(PATIENCE), "a ring was lost"
            bell.clear()
            while work:
                work.popleft()
                done += 1
        for thread in threads:
            thread.join(PATIENCE)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_ring_inside_clear_never_blocks_a_later_ring(self, bell, monkeypatch, when):
        """The ring itself may be lost, because the look for work follows."""
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

    def test_a_signal_handler_may_ring_and_clear_inside_a_ring(self, bell, monkeypatch):
        """A signal handler may post an event, which rings."""
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
    """The descriptors of a bell."""

    def test_waits_on_descriptors_above_1023(self):
        """select() refuses them."""
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
            pipe._open[0] = pipe.reader
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

    def test_ring_and_close_after_close_do_nothing(self, bell):
        """Threads may ring while the node leaves."""
        bell.close()
        bell.close()
        bell.ring()

    def test_a_ring_that_meets_a_close_writes_to_no_other_file(self, bell, monkeypatch):
        """
        The descriptors are closed only when no call uses them.

        Otherwise another file could get their numbers and receive the write.
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

    def test_a_dropped_bell_closes_its_descriptors(self):
        """A node that is never joined must not leak them."""
        bell = Bell()
        descriptors = bell._pipe.reader, bell._pipe.writer
        del bell
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)

    def test_after_fork_closes_the_descriptors_at_once(self, bell):
        """
        In a child the frames of the parent's threads never end, so they would keep the descriptors
        open.
        """
        descriptors = bell._pipe.reader, bell._pipe.writer
        a_thread_of_the_parent = bell._pipe
        bell.after_fork()
        for descriptor in descriptors:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)
        a_thread_of_the_parent.write()
