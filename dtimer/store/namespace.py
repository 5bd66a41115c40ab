"""A namespace on a Redis server: its keys, the check when it is opened, and calls of scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dtimer.errors import NamespaceCorrupt, StoreError
from dtimer.model.ids import incarnation
from dtimer.store import acl, failures, replies
from dtimer.store.calls import ReplicatedCall
from dtimer.store.connection.sources import Source
from dtimer.store.format import text
from dtimer.store.keys import Keys
from dtimer.store.reply_checks import pairs, understood
from dtimer.store.rollback import NamespaceState, RollbackDetector
from dtimer.store.script_client import ScriptClient
from dtimer.store.scripts import Verb, header, verb

SCHEMA = "1"

#: A node that has made no claim for this long is removed from the list of nodes.
SILENT_US = 60_000_000

T = TypeVar("T")

_ALONE = verb("alone", "node", "silent_after")
_OPEN = verb("open", "schema", "mark")
_PERMISSIONS = verb("permissions")


class Namespace:
    """
    Opens a namespace and calls scripts on it: the base of all operations of the store.

    Args:
        source: Makes the connections for scripts.
        ns: The name of the namespace.
        timeout: The deadline of a call, in seconds.
        pubsub_source: Makes the connections for pub/sub; None for *source*.
        now: None for the server's clock, or a function giving µs since the epoch.
    """

    def __init__(
        self,
        source: Source,
        ns: str,
        *,
        timeout: float,
        pubsub_source: Source | None = None,
        now: Callable[[], int] | None = None,
    ) -> None:
        self.ns = ns
        self.keys: Keys = Keys.of(ns)
        self._source = source
        self._pubsub_source = pubsub_source or source
        self._scripts = ScriptClient(source, self.keys, timeout, now)
        self._timeout = timeout
        self._now = now
        self._opened = False
        self.rollback: RollbackDetector = RollbackDetector()

    def open(self) -> None:
        """
        Check that dtimer can use the namespace, and create it if it does not exist.

        Raises:
            NamespaceCorrupt: One of its keys holds a value of another type, or this version of
                dtimer does not know the schema version.
        """
        self._open(self._scripts.deadline())

    def exists(self) -> bool:
        """
        Return True if the namespace exists, without creating it.

        Raises:
            NamespaceCorrupt: As in `open`.
        """
        self._open(self._scripts.deadline(), create=False)
        return self._opened

    def _open(self, deadline: float, *, create: bool = True) -> None:
        if self._opened:
            return
        before = self.rollback.known
        version, state = self._read_state(deadline, create=create)
        if not version:
            self.rollback.opened(before, state)
            return
        if version != SCHEMA:
            raise NamespaceCorrupt(
                f"the namespace has the schema version {version}, and this dtimer"
                f" knows version {SCHEMA}: upgrade it"
            )
        self._opened = True
        self.rollback.opened(before, state)

    def _read_state(self, deadline: float, *, create: bool) -> tuple[str, NamespaceState]:
        # The random mark of a new namespace. Any unique text will do.
        mark = incarnation() if create else ""
        reply = self._scripts.call(_OPEN, SCHEMA, mark, deadline=deadline)
        return understood(_OPEN, lambda r: (text(r[1]), replies.read_namespace_state(r)), reply)

    def reopen(self) -> None:
        """Have the next call open the namespace again, because it may have changed."""
        self._opened = False

    def _call(self, verb: Verb, *arguments: str, until: float | None = None) -> Any:
        deadline = self._scripts.deadline() if until is None else until
        if not self._opened:
            self._open(deadline, create=header(verb).kind != "reads")
        return self._scripts.call(verb, *arguments, deadline=deadline)

    def alone(self, incarnation: str) -> bool:
        """
        Return True if no other node is alive and the namespace is not paused.

        The script is sent once: the caller must deal with a failure.
        """
        return bool(self._scripts.call_once(_ALONE, incarnation, str(SILENT_US)))

    def _ask(
        self,
        read: Callable[[Any], T],
        verb: Verb,
        *arguments: str,
        until: float | None = None,
    ) -> T:
        """
        Call a script and return what *read* makes of its reply.

        Args:
            read: Converts the reply.
            verb: The script.
            arguments: The arguments of the script.
            until: The deadline, if several calls share one.
        """
        return understood(verb, read, self._call(verb, *arguments, until=until))

    def permissions(self) -> dict[str, str]:
        """
        Return the commands that this client may not or cannot run, each with the server's reason.

        Raises:
            StoreError: The server did not answer.
        """
        # Use a fixed time and the source of the script, because TIME or EVALSHA itself may be
        # among the refused commands.
        client = ScriptClient(self._source, self.keys, self._timeout, lambda: 1)
        try:
            flat = client.call(_PERMISSIONS, deadline=client.deadline(), with_source=True)
        except StoreError as e:
            if acl.refusal(str(e)):
                return {"EVAL": str(e)}
            raise
        finally:
            client.close()
        return understood(
            _PERMISSIONS,
            lambda flat: {text(command): text(why) for command, why in pairs(flat)},
            flat,
        )

    def _call_replicated(self, verb: Verb, *arguments: str, replicas: int) -> ReplicatedCall:
        deadline = self._scripts.deadline()
        self._open(deadline)
        return self._scripts.call_replicated(verb, *arguments, deadline=deadline, replicas=replicas)

    @property
    def place(self) -> str:
        """The address of the server, for messages: host and port, without user and password."""
        return self._source.place

    @property
    def replicable(self) -> bool:
        """True if the server can have replicas to wait for."""
        return self._source.replicable

    def about_server(self) -> dict[str, str]:
        """Return the fields of INFO; empty if the server has no INFO or refuses it."""
        try:
            raw = self._source.command("INFO")
        except Exception as e:
            if failures.of_signal_handler(e):
                raise
            # INFO only serves warnings, so its failure must not stop a node. An emulated server has
            # no INFO, and a strict ACL forbids it.
            return {}
        if isinstance(raw, dict):
            return {str(name): str(value) for name, value in raw.items()}
        lines = text(raw).splitlines() if isinstance(raw, bytes) else []
        return dict(line.split(":", 1) for line in lines if ":" in line)

    # Closing

    def close(self) -> None:
        """Close the connections. A later call makes new ones."""
        self._scripts.close()

    def release(self) -> None:
        """Close the connections, and stop keeping an embedded server alive."""
        # The embedded server may exit now and lose its data, which must not count as a rollback.
        self.rollback.forget()
        self.reopen()
        self._scripts.close()
        self._source.close()
        if self._pubsub_source is not self._source:
            self._pubsub_source.close()

    def after_fork(self) -> None:
        """Discard, in a forked child, the connections that belong to the parent."""
        self.rollback.after_fork()
        self._scripts.after_fork()
        self._source.after_fork()
        if self._pubsub_source is not self._source:
            self._pubsub_source.after_fork()

    @staticmethod
    def needs_operator(error: BaseException | None) -> bool:
        """Return True if *error* lasts until an operator fixes its cause."""
        return failures.needs_operator(error)
