"""
Simulate power failures: a preloaded library records which writes a server has synced to disk.

After the server is killed, each of its files is cut to its size at its last fsync. This is the
worst that a file system may do; a real power failure often loses less.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from clocks import preloaded


class Disk:
    """
    The data that the processes started with `env` have synced to disk.

    Args:
        slow: The time added to each fsync, in ms.
    """

    def __init__(self, slow: int = 0) -> None:
        file, self._path = tempfile.mkstemp(prefix="dt-disk-")
        os.close(file)
        #: Variables for the environment of such a process.
        self.env = {
            "LD_PRELOAD": preloaded("disk"),
            "DTIMER_TEST_DISK": self._path,
            "DTIMER_TEST_DISK_MS": str(slow),
        }

    def cut(self, folder: Path) -> int:
        """
        Cut the files in *folder* to the data that was synced.

        Returns:
            The number of bytes lost.
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
        Path(self._path).unlink(missing_ok=True)
