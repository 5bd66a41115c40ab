"""The catalogue, F49 to F57: clocks are wrong, and time passes unseen."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from clocks import WrongClock
from servers import PATIENCE, Server, eventually

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(sys.platform != "linux", reason="the clocks of glibc are stood in for"),
]


class TestWrongClocks:
    """What the rows below rest on: a clock that is set is wrong, and it alone."""

    def test_of_a_server(self):
        """The server's TIME steps ahead and back, as a command and within a script."""
        with Server(clock=True) as server, server.client() as client:
            for seconds in (3600, -3600, 0.5, 0):
                server.set_clock(seconds)

                def off(seconds=seconds):
                    told = client.eval("return redis.call('TIME')", 0)
                    times = [client.time(), tuple(map(int, told))]
                    return [s + us / 1e6 - time.time() - seconds for s, us in times]

                eventually(lambda off=off: all(abs(wrong) < 0.1 for wrong in off()))

    def test_of_a_process(self):
        """A process sees its wall clock off, its monotonic clock only where it runs slow."""
        say = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=1)"
        with (
            WrongClock() as clock,
            subprocess.Popen(
                [sys.executable, "-S", "-c", say],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | clock.env,
                text=True,
            ) as process,
        ):

            def off():
                process.stdin.write("\n")
                process.stdin.flush()
                wall, monotonic = map(float, process.stdout.readline().split())
                return wall - time.time(), monotonic - time.monotonic()

            clock.set(-3600)
            assert pytest.approx((-3600, 0), abs=0.1) == off()
            clock.set(slow=0.9)
            eventually(lambda: max(off()) < -0.2, patience=PATIENCE)
            process.stdin.close()
