"""The types of what users pass to dtimer, as type checkers and IDEs see them."""

from __future__ import annotations

from typing import Any, Literal, Protocol, Required, TypedDict

from dtimer.model.times import Moment
from dtimer.naming import public

#: The policies of `DTimer.post` for an event of the given id that exists.
IfExists = Literal["replace", "keep", "error", "earliest", "latest"]

#: The policies of a schedule for occurrences that were missed.
Misfire = Literal["coalesce", "skip", "all"]

#: The policies of a schedule for an occurrence that is due while the previous one runs.
Overlap = Literal["queue", "allow", "skip"]


class RedisClient(Protocol):
    """
    A client of redis-py, valkey-py or fakeredis: standalone, made by Sentinel, or of a cluster.

    dtimer copies its settings and calls none of its methods. An asyncio client is refused.
    """

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        ...

    def close(self) -> None:
        """Close the client. In an asyncio client this is a coroutine function."""
        ...


class RedisPipeline(Protocol):
    """A pipeline or MULTI of such a client."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Add a command."""
        ...

    def execute(self) -> list[Any]:
        """Send the commands. In an asyncio pipeline this is a coroutine function."""
        ...


class RedisAddress(TypedDict, total=False):
    """The address of a server, as `RunAt` accepts it: ``localhost`` and 6379 by default."""

    host: str
    port: int


class Job(TypedDict, total=False):
    """A key for `RunAt.write`, and when it is due."""

    key: Required[str]
    runAt: Moment | None


class KeySink(Protocol):
    """Receives the keys of `RunAt.pipe`."""

    def write(self, key: str, /) -> object:
        """Accept a key. A result is ignored."""
        ...


public(Job, RedisAddress, RedisClient, RedisPipeline)
