"""
Read a `RunAt` queue and print each key on a line. Run as a process, by path.

The argument is a JSON object: ``url``, ``queue``, the ``options`` of the queue, and ``hold``, the
key after which the process stalls. It prints ``ready`` once it reads, and exits at the key ``end``.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from dtimer import RunAt


def main(text: str) -> None:
    """Read the queue that *text*, a JSON object, describes."""
    setting = json.loads(text)

    def say(line: str) -> None:
        os.write(1, line.encode() + b"\n")

    with RunAt(setting["queue"], redis=setting["url"], **setting["options"]) as queue:
        assert queue.read(0) is None
        say("ready")
        for key in queue:
            if key.startswith("end"):
                break
            say(key)
            if key == setting.get("hold"):
                signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
