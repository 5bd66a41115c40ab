"""Group operations by key, and keep them on disk if there are many, so that memory is bounded."""

from __future__ import annotations

import marshal
import struct
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Self

from chaos.history import Operation

#: The key of a group: a kind and a name.
Key = tuple[str, str]

#: How many operations are kept in memory. Each takes about 1 kB.
_ROOM = 50_000
_LENGTH = struct.Struct("Q")


class Spill:
    """
    Takes operations in any order, and returns them grouped by key.

    A context manager.

    Args:
        count: The number of partitions. One of them is read into memory at a time.
        room: How many operations are kept in memory before they are written to the files.
    """

    def __init__(self, *, count: int = 128, room: int = _ROOM) -> None:
        self._parts: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]
        self._files: list[IO[bytes] | None] = [None] * count
        self._room = room
        self._held = 0

    def put(self, key: Key, operation: Operation) -> None:
        """Add *operation* to the group of *key*."""
        self._parts[hash(key) % len(self._parts)].append((key, tuple(operation)))
        self._held += 1
        if self._held >= self._room:
            self._write_out()

    def _write_out(self) -> None:
        for i, part in enumerate(self._parts):
            if part:
                file = self._files[i]
                if file is None:
                    file = self._files[i] = tempfile.TemporaryFile()  # noqa: SIM115 - see close
                packed = marshal.dumps(part)
                file.write(_LENGTH.pack(len(packed)) + packed)
                part.clear()
        self._held = 0

    def __iter__(self) -> Iterator[tuple[Key, list[Operation]]]:
        """Yield each key with its operations, sorted by their beginnings."""
        for part, file in zip(self._parts, self._files, strict=True):
            gathered: dict[Key, list[Operation]] = {}
            for key, fields in self._all(part, file):
                gathered.setdefault(key, []).append(Operation(*fields))
            for key, operations in gathered.items():
                operations.sort(key=_beginning)
                yield key, operations

    @staticmethod
    def _all(part: list[tuple[Any, ...]], file: IO[bytes] | None) -> Iterator[tuple[Any, ...]]:
        if file is not None:
            file.seek(0)
            while head := file.read(_LENGTH.size):
                # `marshal.load` would read the file byte by byte.
                yield from marshal.loads(file.read(*_LENGTH.unpack(head)))
        yield from part

    def close(self) -> None:
        for file in self._files:
            if file is not None:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _beginning(operation: Operation) -> int:
    return operation.t
