"""
Power failures: a preloaded library notes what a server has brought to its disk.

After the server is killed its files are cut to what the last fsync of each had seen. So it
is with a file system that keeps nothing else: the worst that is allowed, and not what would
happen each time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from clocks import preloaded


class Disk:
    """
    What the processes that are started with `env` have brought to their disk.

    Args:
        slow: How much longer each fsync takes, in ms.
    """

    def __init__(self, slow: int = 0) -> None:
        file, self._path = tempfile.mkstemp(prefix="dt-disk-")
        os.close(file)
        #: What the environment of such a process has to hold.
        self.env = {
            "LD_PRELOAD": preloaded("disk"),
            "DTIMER_TEST_DISK": self._path,
            "DTIMER_TEST_DISK_MS": str(slow),
        }

    def cut(self, folder: Path) -> int:
        """
        Cut the files in *folder* to what is on the disk.

        Returns:
            How many bytes were lost.
        """
        safe: dict[int, int] = {}
        for line in Path(self._path).read_text().splitlines():
            inode, size = map(int, line.split())
            safe[inode] = size
        lost = 0
        for file in folder.rglob("*"):
            if not file.is_file():
                continue
            there = file.stat()
            size = safe.get(there.st_ino, 0)
            if size < there.st_size:
                lost += there.st_size - size
                os.truncate(file, size)
        return lost

    def close(self) -> None:
        """Have nothing left of it."""
        Path(self._path).unlink(missing_ok=True)
