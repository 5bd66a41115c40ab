"""The bell: no ring is lost, any thread may ring, and ringing is always safe."""

import collections
import fcntl
import os
import resource
import select
import threading
import time

import pytest
from servers import PATIENCE

from dtimer import syscalls
from dtimer.engine.bell import Bell


@pytest.fixture(params=[False, True])
def bell(request):
    bell = Bell()
    bell.keeps_lock = request.param
    yield bell
    bell.close()


def assert_closed(descriptors):
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)


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

    def test_the_descriptor_is_readable_while_rung(self, bell):
        """A thread can wait for the bell together with other descriptors."""
        for rung in (False, True):
            if rung:
                bell.ring()
            readable, _, _ = select.select([bell.descriptor], [], [], 0)
            assert rung is bool(readable)

    def test_a_wait_of_zero_or_negative_seconds_returns_at_once(self, bell):
        """Callers pass the time that is left."""
        assert not bell.wait(-1)
        bell.ring()
        assert bell.wait(-1)

    def test_no_work_is_lost_between_many_threads(self, bell):
        """Each thread adds work, then rings. The waiting thread clears, then looks for work."""
        work = collections.deque()

        def add_work():
            for n in range(5_000):
                work.append(n)
                bell.ring()

        threads = [threading.Thread(target=add_work) for _ in range(4)]
        for thread in threads:
            thread.start()
        done = 0
        while done < 4 * 5_000:
            assert bell.wait(PATIENCE), "a ring was lost"
            bell.clear()
            while work:
                work.popleft()
                done += 1
        for thread in threads:
            thread.join(PATIENCE)


class TestDescriptors:
    """The descriptors of a bell."""

    def test_waits_on_descriptors_above_1023(self):
        """select() refuses such descriptors, which a process with many files has."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        high = 1_500 if hard == resource.RLIM_INFINITY else min(1_500, hard - 1)
        assert high > 1_023, "this machine has no such descriptors"
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, high + 1), hard))
        bell = Bell()
        try:
            pipe = bell._pipe
            low_reader, pipe.reader = pipe.reader, fcntl.fcntl(pipe.reader, fcntl.F_DUPFD, high)
            pipe._open[0] = pipe.reader
            os.close(low_reader)
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

    @pytest.mark.parametrize("module", [os, syscalls])
    def test_a_ring_that_meets_a_close_writes_to_no_other_file(self, bell, monkeypatch, module):
        """Another file may get the number of a descriptor as soon as that is closed."""
        write = module.write
        bell.keeps_lock = module is syscalls
        descriptors = {bell._pipe.reader, bell._pipe.writer}
        opened = []

        def write_after_close(descriptor, data):
            bell.close()
            opened.extend(os.pipe())
            return write(descriptor, data)

        monkeypatch.setattr(module, "write", write_after_close)
        bell.ring()
        assert_closed(descriptors)
        reader, writer = opened
        os.close(writer)
        assert b"" == os.read(reader, 1)
        os.close(reader)
        assert descriptors.isdisjoint(opened)

    def test_a_dropped_bell_closes_its_descriptors(self):
        """A node that is never joined must not leak them."""
        bell = Bell()
        descriptors = bell._pipe.reader, bell._pipe.writer
        del bell
        assert_closed(descriptors)

    def test_after_fork_closes_the_descriptors_at_once(self, bell):
        """In a child the frames of the parent's threads never end, and refer to the descriptors."""
        descriptors = bell._pipe.reader, bell._pipe.writer
        pipe_of_a_frame = bell._pipe
        bell.after_fork()
        assert_closed(descriptors)
        pipe_of_a_frame.write(keeps_lock=False)
