"""Run the soak for a minute. ``make soak MINUTES=60`` runs it for longer."""

from __future__ import annotations

import os
import random
import sys

import pytest
from servers import LIMIT

from chaos.soak import Plan, soak

#: A different seed in each run. The report of a failure includes it.
SEED = int(os.environ.get("DTIMER_TEST_SEED", "0")) or random.randrange(1, 10**6)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_a_soak_of_a_minute_passes():
    """The nemesis injects each fault at least once, and the guarantees hold."""
    report = soak(Plan(minutes=1, seed=SEED))
    sys.stdout.write(f"{report}\n")
    assert report.passed, str(report)
