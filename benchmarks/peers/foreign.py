"""
Run another client of the same server, which asks for a key a thousand times a second.

For each line of input it prints the quantiles of the round trips since the last one, in ms.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from urllib.parse import urlsplit

_EVERY = 0.001


def main() -> None:
    """Ask and report until the input ends."""
    parts = urlsplit(json.loads(sys.stdin.readline())["url"])
    line = socket.create_connection((str(parts.hostname), int(parts.port or 6379)))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    took: list[float] = []
    while True:
        if select.select([sys.stdin], [], [], _EVERY)[0]:
            if not os.read(0, 1024):
                return
            ordered = sorted(took) or [0.0]
            parts_of = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
            told = {
                name: ordered[int(part * (len(ordered) - 1))] for name, part in parts_of.items()
            }
            print(json.dumps({**told, "max": ordered[-1], "count": len(took)}), flush=True)
            took.clear()
        began = time.perf_counter()
        line.sendall(b"*2\r\n$3\r\nGET\r\n$7\r\nforeign\r\n")
        line.recv(64)
        took.append((time.perf_counter() - began) * 1000)


main()
