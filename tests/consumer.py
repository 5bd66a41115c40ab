"""
A process that reads a `RunAt` queue and says what it read, one key a line. Run by its path.

Its arguments are a JSON object: ``url``, ``queue``, the ``options`` of the queue, and
``hold``, a key in whose possession it stops doing anything at all. It says ``ready`` when it
reads, and ends when it reads the key ``end``.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from dtimer import RunAt


def main(text: str) -> None:
    """Read as the text says."""
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
