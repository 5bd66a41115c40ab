"""
Make connections to the server of a cluster that holds the keys, and follow the keys if they move.

The library's cluster client is not used for calls, for two reasons. It exceeds deadlines: after an
error it asks every server for the topology, and waits for each as long as for a call. It also hides
a timeout: the call raises the error of these requests instead. A call that may have taken effect
then looks as if it had not been sent.
"""

from __future__ import annotations

import functools
import importlib
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from dtimer.store.connection.connection import Argument, Connection, Packer, is_a_reply
from dtimer.store.connection.deadline import run_command, set_deadline, with_deadline
from dtimer.store.connection.pool import library, settings
from dtimer.store.connection.subscription import Subscription
from dtimer.store.failures import Failure, classify, needs_operator, of_signal_handler
from dtimer.store.keys import Keys
from dtimer.store.scripts import Script

Address = tuple[str, int]

#: The most redirections that one attempt follows, in case a slot keeps moving.
_MOST_REDIRECTIONS = 5

# The number of servers that a message names.
_SERVERS_IN_MESSAGE = 3


# Matches the text of a redirection. dtimer's connections use the library's parser for a single
# server. That of newer versions of redis-py raises a MovedError. That of redis-py 5 and valkey-py
# does not know MOVED, and raises a plain error with the whole text.
_MOVED = re.compile(r"(?:MOVED )?\d+ (.*):(\d+)\Z")


def _moved(error: Exception) -> Address | None:
    """Return the server to which the keys have moved, or None if *error* is another error."""
    if type(error).__name__ != "MovedError" and not str(error).startswith("MOVED "):
        return None
    match = _MOVED.match(str(error))
    return (match[1], int(match[2])) if match else None


class ClusterSource:
    """Makes connections to the server of a cluster that holds the keys of the namespace."""

    #: Every server of a cluster may have replicas.
    replicable = True

    def __init__(self, client: Any, timeout: float) -> None:
        package = library(client)
        nodes = client.get_nodes()
        pool = getattr(client, f"get_{package}_connection")(nodes[0]).connection_pool
        self._class = with_deadline(pool.connection_class)
        self._settings = settings(pool.connection_kwargs, package, timeout)
        for name in ("host", "port", "redis_connect_func", "valkey_connect_func"):
            self._settings.pop(name, None)
        self._remap = client.nodes_manager.address_remap
        self._timeout = timeout
        self._slot_of = importlib.import_module(f"{package}.crc").key_slot
        self._unreachable = importlib.import_module(f"{package}.exceptions").ConnectionError
        self._startup: list[Address] = [(node.host, node.port) for node in nodes]
        #: The known servers, in the order in which they are asked.
        self._nodes = self._startup
        #: The server of each slot that was looked up.
        self._home_of_slot: dict[int, Address] = {}
        self._lock = threading.RLock()

    def connect_to(self, address: Address) -> Any:
        """Return an unconnected connection to one server. `set_deadline` works on it."""
        host, port = address
        return self._class(**self._settings, host=host, port=port)

    def home(self, keys: Keys, until: float) -> Address:
        """
        Return the server that holds *keys*; if it is not known, ask one server after the other.

        The call ends at *until*, on the monotonic clock, however many servers hang.

        Raises:
            Exception: (of the client library) No server answered, or no server has the keys.
        """
        slot = self._slot_of(keys.due.encode())
        found = self._home_of_slot.get(slot)
        if found is not None:
            return found
        # One thread asks, and the others use its answer.
        lock = self._lock
        # A signal handler that raises before `try` is entered leaves the lock locked forever. So
        # wait only half of the time, and use the rest to ask without the lock.
        taken = lock.acquire(timeout=max(0, (until - time.monotonic()) / 2))
        try:
            if not taken:
                # Replace the lock, or later calls would wait for it as well.
                self._lock = threading.RLock()
            found = self._home_of_slot.get(slot)
            if found is None:
                found = self._home_of_slot[slot] = self._look_up(slot, until)
            return found
        finally:
            if taken:
                lock.release()

    def _look_up(self, slot: int, until: float) -> Address:
        error: Exception | None = None
        nodes = self._nodes.copy()
        for i, address in enumerate(nodes):
            left = until - time.monotonic()
            try:
                # Give a server half of the remaining time, in case it hangs.
                last = i == len(nodes) - 1
                ranges = self._ask(address, until if last else until - left / 2)
            except Exception as e:
                if needs_operator(e) or of_signal_handler(e):
                    raise
                error = e
                continue
            reported = [
                self._address(server, address) for _, _, *servers in ranges for server in servers
            ]
            self._nodes = [*dict.fromkeys([address, *reported, *self._startup])]
            for low, high, master, *_ in ranges:
                if low <= slot <= high:
                    return self._address(master, address)
        why = error or "no server has the slot of the namespace"
        raise self._unreachable(f"the cluster's server for the keys is not known: {why}") from error

    def _ask(self, address: Address, until: float) -> Any:
        connection = self.connect_to(address)
        set_deadline(connection, until)
        return run_command(connection, "CLUSTER", "SLOTS")

    def _address(self, server: Sequence[Any], asked: Address) -> Address:
        # A server may report an empty host for itself, which means the host that was asked.
        host = server[0].decode() if server[0] else asked[0]
        return self._mapped(host, int(server[1]))

    def _mapped(self, host: str, port: int) -> Address:
        mapped: Address = self._remap((host, port)) if self._remap else (host, port)
        return mapped

    def forget_home(self, keys: Keys, home: Address) -> None:
        """Make the next call look up the server of *keys*, and ask *home* last."""
        slot = self._slot_of(keys.due.encode())
        if self._home_of_slot.get(slot) == home:
            self._home_of_slot.pop(slot, None)
            self._nodes = [*(node for node in self._nodes if node != home), home]

    def moved(self, keys: Keys, target: Address, home: Address) -> None:
        """Record that *keys* have moved from *home* to *target*. An empty host is *home*'s."""
        address = self._mapped(target[0] or home[0], target[1])
        self._home_of_slot[self._slot_of(keys.due.encode())] = address

    @property
    def address(self) -> str:
        """See `Source.address`."""
        shown = [f"{host}:{port}" for host, port in self._nodes[:_SERVERS_IN_MESSAGE]]
        more = ", …" if len(self._nodes) > _SERVERS_IN_MESSAGE else ""
        return f"the cluster of {', '.join(shown)}{more}"

    def connection(self, keys: Keys) -> ClusterConnection:
        """See `Source.connection`."""
        return ClusterConnection(self, keys)

    def subscription(self, keys: Keys, channels: Sequence[str]) -> Subscription:
        """
        See `Source.subscription`.

        A published message reaches every server of the cluster. Subscribing at the server that
        holds the keys saves a hop.
        """

        def connect() -> Any:
            until = time.monotonic() + self._timeout
            # Look up the server again. If this source serves only pub/sub, no failed call would
            # reveal that the keys have moved.
            self.forget_home(keys, self.home(keys, until))
            return self.connect_to(self.home(keys, until))

        return Subscription(connect, channels)

    def command(self, *words: str) -> Any:
        """Run one command on the first known server, on its own connection."""
        return run_command(self.connect_to(self._nodes[0]), *words)

    def close(self) -> None:
        """See `Source.close`: this source keeps no connections."""

    def after_fork(self) -> None:
        """See `Source.after_fork`."""
        self._lock = threading.RLock()


class ClusterConnection:
    """
    A connection to the server of a cluster that holds the keys, used like a `Connection`.

    Only one thread may use it at a time.
    """

    def __init__(self, source: ClusterSource, keys: Keys) -> None:
        self._source = source
        self._keys = keys
        self._packer = Packer(keys)
        # These are set when the first call is sent.
        self._home: Any = None
        self._connection: Any = None
        self._last_call: Any = None
        self.sent: bool = False
        #: See `Connection.arrived`.
        self.arrived: int = 0
        #: See `Connection.ended_us`.
        self.ended_us: int | None = None

    def run(
        self,
        script: Script,
        arguments: Sequence[Argument],
        until: float,
        limit: float | None = None,
        *,
        with_source: bool = False,
    ) -> Any:
        """See `Connection.run`."""
        try:
            self.send(script, arguments, until, limit, with_source=with_source)
            return self.receive(until, limit)
        except BaseException as e:
            if not (self.sent and is_a_reply(e)):
                self.close()
            raise

    def send(
        self,
        script: Script,
        arguments: Sequence[Argument],
        until: float,
        limit: float | None = None,
        *,
        with_source: bool = False,
        with_time: bool = False,
        keep_lock: bool = False,
    ) -> None:
        """See `Connection.send`. Neither *with_time* nor *keep_lock* has an effect."""
        self.sent = False
        self.arrived = 0
        self._last_call = (script, arguments, with_source)
        home = self._source.home(self._keys, until)
        if self._connection is None or home != self._home:
            self.close()
            self._home = home
            self._connection = Connection(
                functools.partial(self._source.connect_to, home), self._packer
            )
        try:
            self._connection.send(script, arguments, until, limit, with_source=with_source)
        except Exception:
            self._source.forget_home(self._keys, home)
            raise
        finally:
            self.sent = self._connection.sent

    def receive(self, until: float, limit: float | None = None) -> Any:
        """
        Return the reply to the script that was sent, following the keys if they have moved.

        While a slot moves, each of two servers has some of its keys, and no server can run a
        script, which needs all of them. So ASK is not followed: the new server would refuse the
        script with TRYAGAIN until it has all keys.
        """
        for left in reversed(range(_MOST_REDIRECTIONS)):
            try:
                return self._connection.receive(until, limit)
            except Exception as e:
                self.arrived = self._connection.arrived
                if not (moved := _moved(e)) or not left:
                    if not is_a_reply(e) or classify(e, sent=True) is Failure.RECONNECT:
                        self._source.forget_home(self._keys, self._home)
                    raise
                self._source.moved(self._keys, moved, self._home)
                script, arguments, with_source = self._last_call
                self.send(script, arguments, until, limit, with_source=with_source)
        raise AssertionError("the last redirection was not raised")

    def wait(self, replicas: int, ms: int, until: float) -> int:
        """See `Connection.wait`."""
        count: int = self._connection.wait(replicas, ms, until)
        return count

    def close(self) -> None:
        """See `Connection.close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
