"""The settings that all of the chaos suite goes by, and what follows from them."""

from __future__ import annotations

from typing import Any

from servers import PROMPT, SLOWNESS

#: Of the nodes of a soak: a lease ends, a poll comes and a call gives up within a second.
OPTIONS: dict[str, Any] = {"lease": 600, "poll_interval": 100, "timeout": 300, "backoff": 50}

#: Of the nodes of a row. A busy machine delays replies and heartbeats. A row that injects one
#: fault must not see a second one, so its calls and leases outlast such a delay.
PATIENT: dict[str, Any] = OPTIONS | {"lease": 1_000, "timeout": 3_000}

#: More for a row in which a reply never comes: the test waits for this deadline.
HASTY: dict[str, Any] = {"timeout": 900}

#: Seconds from the end of a fault to full service: the longest pause between two tries
#: (500 ms), a poll (100 ms), and a call that has to give up first (100 ms a try).
RECOVERY = 1.0

#: Seconds in which a soak demands it: more processes run than there are cores.
RECOVERY_LIMIT = 3 * RECOVERY * SLOWNESS

#: Seconds in which a call of a row has to come back.
CALL_LIMIT = PATIENT["timeout"] / 1000 + PROMPT

#: The share of a core that the threads of one node may use while a fault lasts, and the
#: seconds that they may use besides, for what they do once.
CPU_SHARE, CPU_ONCE = 0.10, 0.10

#: Connections that one node may try in a second while it cannot reach its server: its two
#: threads try again after 50 ms, 100 ms, 200 ms and so on up to 500 ms, less up to half.
CONNECTS_PER_SECOND = 8
CONNECTS_ONCE = 16

#: Scripts that one node may call in a second: twice its polls (each 80 ms at the soonest)
#: and heartbeats (each third of a lease). And besides, for what it does once, and for each
#: event: wake, claim, confirm and the duty that goes round, twice.
CALLS_PER_SECOND = 2 * (1000 / (0.8 * OPTIONS["poll_interval"]) + 3000 / OPTIONS["lease"])
CALLS_ONCE = 30
CALLS_PER_EVENT = 8

#: Bytes that the process may grow by in one test of nodes that do next to nothing.
MOST_MEMORY = 48_000_000
