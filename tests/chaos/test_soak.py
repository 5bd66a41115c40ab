"""The soak, for a minute. Longer ones, and one of a million events: ``make soak MINUTES=60``."""

from __future__ import annotations

import os
import random
import sys

import pytest
from servers import LIMIT

from chaos.soak import Plan, soak

#: Another one each time: what it finds is said together with the seed that found it.
SEED = int(os.environ.get("DTIMER_TEST_SEED", "0")) or random.randrange(1, 10**6)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_everything_at_once_for_a_minute():
    """
    Posters, nodes, readers and schedules keep every promise while each fault there is strikes
    at least once, and leave nothing behind.
    """
    report = soak(Plan(minutes=1, seed=SEED))
    sys.stdout.write(f"{report}\n")
    assert report.passed, str(report)
