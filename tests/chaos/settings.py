"""The settings of the chaos programs and of the tests of faults, and the limits that follow."""

from __future__ import annotations

from typing import Any

from servers import PROMPT, SLOWNESS

#: For the nodes of a soak: a lease expires, a poll comes and a call gives up within a second.
OPTIONS: dict[str, Any] = {"lease": 600, "poll_interval": 100, "timeout": 300, "backoff": 50}

#: For the nodes in a test of one fault. A busy machine delays replies and heartbeats. Calls and
#: leases must outlast such a delay, or the test would see a second fault.
PATIENT: dict[str, Any] = OPTIONS | {"lease": 1_000, "timeout": 3_000}

#: Further options for a test in which a reply never arrives, so that it waits for this deadline.
HASTY: dict[str, Any] = {"timeout": 900}

#: Seconds from the end of a fault to full service: the longest pause between two attempts
#: (500 ms), a poll (100 ms), and a call that must give up first (100 ms an attempt).
RECOVERY = 1.0

#: The limit of a recovery in a soak, in seconds: more processes run than there are cores.
RECOVERY_LIMIT = 3 * RECOVERY * SLOWNESS

#: The limit of a call in a test of one fault, in seconds.
CALL_LIMIT = PATIENT["timeout"] / 1000 + PROMPT

#: The share of a core that the threads of one node may use while a fault lasts, and the additional
#: seconds of CPU for work that is done once.
CPU_SHARE, CPU_ONCE = 0.10, 0.10

#: How many connections one node may try in a second while it cannot reach its server. Its two
#: threads try again after 50 ms, 100 ms, 200 ms and so on up to 500 ms, minus up to half.
#: CONNECTS_ONCE is for the connections that do not depend on the length of the outage: the first
#: tries, with the shortest pauses, and those after the recovery.
CONNECTS_PER_SECOND = 8
CONNECTS_ONCE = 16

#: How many scripts one node may call in a second: twice its polls (every 80 ms at the soonest)
#: and heartbeats (every third of a lease). The other limits are for calls that a node makes once,
#: and for each event: twice the wake, the claim, the confirmation and the change of duty.
CALLS_PER_SECOND = 2 * (1000 / (0.8 * OPTIONS["poll_interval"]) + 3000 / OPTIONS["lease"])
CALLS_ONCE = 30
CALLS_PER_EVENT = 8

#: How many bytes the process may grow in a test, whose nodes have little to do.
MOST_MEMORY = 48_000_000
