"""
A cluster: which of its servers has the keys, and connections of ours that follow them.

The library's own client for clusters is not used for calls. It keeps no deadline, because it asks
every server for the topology after an error, each for as long as a call may take. And it replaces
the time-out of a call by what that question came to, so that a call that may have been done looks
like one that never was.
"""

from __future__ import annotations

import functools
import importlib
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from dtimer.store.deadline import set_deadline, with_deadline
from dtimer.store.ear import Ear
from dtimer.store.faults import Fate, fate, slow
from dtimer.store.keys import Keys
from dtimer.store.pools import library, settings
from dtimer.store.scripts import Script
from dtimer.store.wire import Argument, Packer, Wire, is_a_reply

Address = tuple[str, int]

#: A slot that moves on while a call follows it is asked for again by the next try.
_MOST_REDIRECTIONS = 5

# So many of its servers are named in a message.
_NAMED = 3


# What a MovedError says, and a plain error of the clients whose parser does not know MOVED: our
# connections have the parser of a single server, and valkey-py and redis-py 5 have two.
_MOVED = re.compile(r"(?:MOVED )?\d+ (.*):(\d+)\Z")


def _moved(error: Exception) -> Address | None:
    """Return the server to which the keys have moved; None if *error* does not say that."""
    if type(error).__name__ != "MovedError" and not str(error).startswith("MOVED "):
        return None
    match = _MOVED.match(str(error))
    return (match[1], int(match[2])) if match else None


class ClusterSource:
    """Connections to the server of a cluster that holds the keys of the namespace."""

    #: Each of its servers may have some.
    replicable = True

    def __init__(self, client: Any, timeout: float) -> None:
        root = library(client)
        nodes = client.get_nodes()
        pool = getattr(client, f"get_{root}_connection")(nodes[0]).connection_pool
        self._class = with_deadline(pool.connection_class)
        self._settings = settings(pool.connection_kwargs, root, timeout)
        for name in ("host", "port", "redis_connect_func", "valkey_connect_func"):
            self._settings.pop(name, None)
        self._remap = client.nodes_manager.address_remap
        self._timeout = timeout
        self._slot_of = importlib.import_module(f"{root}.crc").key_slot
        self._unreachable = importlib.import_module(f"{root}.exceptions").ConnectionError
        self._startup: list[Address] = [(node.host, node.port) for node in nodes]
        #: The servers that are known, in the order in which they are asked.
        self._nodes = self._startup
        self._homes: dict[int, Address] = {}
        self._lock = threading.RLock()

    def connection(self, address: Address) -> Any:
        """Return a connection to one server that can be given a deadline, not connected yet."""
        host, port = address
        return self._class(**self._settings, host=host, port=port)

    def home(self, keys: Keys, until: float) -> Address:
        """
        Return the server that holds *keys*, asking one server after the other if it is not known.

        Ends at the moment *until* on the monotonic clock, however many servers hang.

        Raises:
            Exception: (the library's) no server could be asked, or none holds them.
        """
        slot = self._slot_of(keys.due.encode())
        found = self._homes.get(slot)
        if found is not None:
            return found
        # One thread asks, and the others take its answer.
        lock = self._lock
        # A signal handler that raises between these two lines leaves the lock taken for ever, so
        # the wait leaves time to ask without it.
        taken = lock.acquire(timeout=max(0, (until - time.monotonic()) / 2))
        try:
            if not taken:
                # The calls after this one shall not wait for it again.
                self._lock = threading.RLock()
            found = self._homes.get(slot)
            if found is None:
                found = self._homes[slot] = self._look_up(slot, until)
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
                # A server that hangs leaves half of the time to those after it.
                last = i == len(nodes) - 1
                ranges = self._ask(address, until if last else until - left / 2)
            except Exception as e:
                if slow(e):
                    raise
                error = e
                continue
            named = [self._address(server, address) for _, _, *all in ranges for server in all]
            self._nodes = [*dict.fromkeys([address, *named, *self._startup])]
            for low, high, master, *_ in ranges:
                if low <= slot <= high:
                    return self._address(master, address)
        why = error or "none holds the slot of the namespace"
        raise self._unreachable(f"no server of the cluster knows the way: {why}") from error

    def _ask(self, address: Address, until: float) -> Any:
        connection = self.connection(address)
        try:
            set_deadline(connection, until)
            connection.connect()
            connection.send_command("CLUSTER", "SLOTS", check_health=False)
            return connection.read_response(disable_decoding=True)
        finally:
            connection.disconnect()

    def _address(self, server: Sequence[Any], asked: Address) -> Address:
        # Without a name of its own a server is where it was asked.
        host = server[0].decode() if server[0] else asked[0]
        return self._mapped(host, int(server[1]))

    def _mapped(self, host: str, port: int) -> Address:
        mapped: Address = self._remap((host, port)) if self._remap else (host, port)
        return mapped

    def doubt(self, keys: Keys, home: Address) -> None:
        """Have the next call ask where *keys* are, and *home* after the other servers."""
        slot = self._slot_of(keys.due.encode())
        if self._homes.get(slot) == home:
            self._homes.pop(slot, None)
            self._nodes = [*(node for node in self._nodes if node != home), home]

    def moved(self, keys: Keys, named: Address, home: Address) -> None:
        """Remember the server that was *named* in the place of *home*."""
        address = self._mapped(named[0] or home[0], named[1])
        self._homes[self._slot_of(keys.due.encode())] = address

    @property
    def place(self) -> str:
        """See `Source.place`."""
        named = [f"{host}:{port}" for host, port in self._nodes[:_NAMED]]
        more = ", …" if len(self._nodes) > _NAMED else ""
        return f"the cluster of {', '.join(named)}{more}"

    def wire(self, keys: Keys) -> ClusterWire:
        """See `Source.wire`."""
        return ClusterWire(self, keys)

    def ear(self, keys: Keys, channels: Sequence[str]) -> Ear:
        """
        See `Source.ear`.

        A message published anywhere reaches every server of the cluster; listening
        where the keys are saves the hop.
        """

        def connect() -> Any:
            until = time.monotonic() + self._timeout
            # There may be no calls here that would notice that the keys have moved.
            self.doubt(keys, self.home(keys, until))
            return self.connection(self.home(keys, until))

        return Ear(connect, channels)

    def command(self, *words: str) -> Any:
        """See `Source.command`: run by the first server that is known."""
        connection = self.connection(self._nodes[0])
        try:
            connection.connect()
            connection.send_command(*words, check_health=False)
            return connection.read_response(disable_decoding=True)
        finally:
            connection.disconnect()

    def close(self) -> None:
        """See `Source.close`: connections are never kept here."""

    def after_fork(self) -> None:
        """See `Source.after_fork`."""
        self._lock = threading.RLock()


class ClusterWire:
    """
    A `Wire` to whichever server of a cluster holds the keys.

    Not for two threads at a time.
    """

    def __init__(self, source: ClusterSource, keys: Keys) -> None:
        self._source = source
        self._keys = keys
        self._packer = Packer(keys)
        # All of this is there once a call was sent.
        self._home: Any = None
        self._wire: Any = None
        self._words: Any = None
        self.sent = False
        #: See `Wire.arrived`.
        self.arrived = 0

    def run(
        self,
        script: Script,
        arguments: Sequence[Argument],
        until: float,
        limit: float | None = None,
        *,
        whole: bool = False,
    ) -> Any:
        """See `Wire.run`."""
        try:
            self.send(script, arguments, until, limit, whole=whole)
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
        whole: bool = False,
    ) -> None:
        """See `Wire.send`."""
        self.sent = False
        self.arrived = 0
        self._words = (script, arguments, whole)
        home = self._source.home(self._keys, until)
        if self._wire is None or home != self._home:
            self.close()
            self._home = home
            self._wire = Wire(functools.partial(self._source.connection, home), self._packer)
        try:
            self._wire.send(script, arguments, until, limit, whole=whole)
        except Exception:
            self._source.doubt(self._keys, home)
            raise
        finally:
            self.sent = self._wire.sent

    def receive(self, until: float, limit: float | None = None) -> Any:
        """
        See `Wire.receive`: follows the keys where the server says that they have moved.

        While they move there is nowhere to go. A script needs all of them in one place, which
        the next server refuses (TRYAGAIN) until it has them all; so ASK is not followed.
        """
        for left in reversed(range(_MOST_REDIRECTIONS)):
            try:
                return self._wire.receive(until, limit)
            except Exception as e:
                self.arrived = self._wire.arrived
                if not (moved := _moved(e)) or not left:
                    if not is_a_reply(e) or fate(e, sent=True) is Fate.RECONNECT:
                        self._source.doubt(self._keys, self._home)
                    raise
                self._source.moved(self._keys, moved, self._home)
                script, arguments, whole = self._words
                self.send(script, arguments, until, limit, whole=whole)
        raise AssertionError("the last redirection is raised")

    def wait(self, replicas: int, ms: int, until: float) -> int:
        """See `Wire.wait`."""
        count: int = self._wire.wait(replicas, ms, until)
        return count

    def close(self) -> None:
        """See `Wire.close`."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
