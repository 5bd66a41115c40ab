"""The settings that all of the chaos suite goes by, and what follows from them."""

from __future__ import annotations

from typing import Any

#: Of every node, so that a lease ends, a poll comes and a call gives up within a second.
OPTIONS: dict[str, Any] = {"lease": 600, "poll_interval": 100, "timeout": 300, "backoff": 50}

#: Seconds from the end of a fault to full service: the longest pause between two tries
#: (500 ms), a poll (100 ms), and a call that has to give up first (100 ms a try).
RECOVERY = 1.0

#: Seconds in which a test demands it: two cores are shared with other tests.
RECOVERY_LIMIT = 3 * RECOVERY

#: The share of a core that the threads of one node may use while a fault lasts, and the
#: seconds that they may use besides, for what they do once.
CPU_SHARE, CPU_ONCE = 0.10, 0.15

#: Connections that one node may open in a second while it cannot reach its server: its two
#: threads try again after 50 ms, 100 ms, 200 ms and so on up to 500 ms, less up to half.
CONNECTS_PER_SECOND = 8
CONNECTS_ONCE = 16
