"""A namespace on a Redis: its keys, its opening, and calls of scripts on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dtimer.errors import NamespaceCorrupt, StoreError
from dtimer.model.names import incarnation
from dtimer.store import access, codec, faults
from dtimer.store.connect import Source
from dtimer.store.keys import Keys
from dtimer.store.line import READS, Line
from dtimer.store.replies import pairs, understood
from dtimer.store.tries import Copied
from dtimer.store.witness import Standing, Witness

SCHEMA = "1"

#: A node that has not asked for this long is forgotten.
SILENT_US = 60_000_000

T = TypeVar("T")


class Namespace:
    """What all verbs of the store stand on."""

    def __init__(
        self,
        source: Source,
        ns: str,
        *,
        timeout: float,
        ears: Source | None = None,
        now: Callable[[], int] | None = None,
    ) -> None:
        self.ns = ns
        self.keys = Keys.of(ns)
        self._source = source
        self._ears = ears or source
        self._line = Line(source, self.keys, timeout, now)
        self._timeout = timeout
        self._now = now
        self._opened = False
        self.witness = Witness()

    def open(self) -> None:
        """
        Make sure that the namespace is ours.

        Raises:
            NamespaceCorrupt: a foreign type under one of our keys, or a schema version
                that this version of dtimer does not know.
        """
        self._open(self._line.deadline())

    def look(self) -> bool:
        """
        Return whether the namespace exists, and write nothing.

        Raises:
            NamespaceCorrupt: as `open`.
        """
        self._open(self._line.deadline(), make=False)
        return self._opened

    def _open(self, deadline: float, *, make: bool = True) -> None:
        if self._opened:
            return
        before = self.witness.known
        version, standing = self._stands(deadline, make=make)
        if not version:
            self.witness.opened(before, standing)
            return
        if version != SCHEMA:
            raise NamespaceCorrupt(
                f"the namespace has the schema version {version}, and this dtimer"
                f" knows version {SCHEMA}: upgrade it"
            )
        self._opened = True
        self.witness.opened(before, standing)

    def _stands(self, deadline: float, *, make: bool) -> tuple[str, Standing]:
        name = incarnation() if make else ""
        reply = self._line.call("open", SCHEMA, name, deadline=deadline)
        return understood("open", lambda r: (codec.text(r[1]), codec.read_standing(r)), reply)

    def reopen(self) -> None:
        """Have the next call look at the namespace anew: it may not be what it was."""
        self._opened = False

    def _call(
        self, verb: str, *arguments: str, named: bool = False, until: float | None = None
    ) -> Any:
        deadline = self._line.deadline() if until is None else until
        self._open(deadline, make=verb not in READS)
        return self._line.call(verb, *arguments, named=named, deadline=deadline)

    def alone(self, incarnation: str) -> bool:
        """Return, in one try, whether no other node is alive and the namespace is not paused."""
        return bool(self._line.once("alone", incarnation, str(SILENT_US)))

    def _ask(
        self,
        read: Callable[[Any], T],
        verb: str,
        *arguments: str,
        named: bool = False,
        until: float | None = None,
    ) -> T:
        """
        Call a script, and *read* its reply.

        Args:
            read: Reads the reply.
            verb: The script.
            arguments: Its arguments.
            named: Whether the script must not act twice.
            until: The deadline, if several calls share one.
        """
        return understood(verb, read, self._call(verb, *arguments, named=named, until=until))

    def permissions(self) -> dict[str, str]:
        """
        Return the commands that this client may not run, or cannot, and why.

        Raises:
            StoreError: Redis could not be asked.
        """
        # With a time of its own, and whole: neither TIME nor EVALSHA may be what is refused.
        line = Line(self._source, self.keys, self._timeout, lambda: 1)
        try:
            flat = line.call("permissions", deadline=line.deadline(), whole=True)
        except StoreError as e:
            if access.refusal(str(e)):
                return {"EVAL": str(e)}
            raise
        finally:
            line.close()
        return understood(
            "permissions",
            lambda flat: {codec.text(command): codec.text(why) for command, why in pairs(flat)},
            flat,
        )

    def _call_copied(self, verb: str, *arguments: str, replicas: int) -> Copied:
        deadline = self._line.deadline()
        self._open(deadline)
        return self._line.call_copied(verb, *arguments, deadline=deadline, replicas=replicas)

    @property
    def place(self) -> str:
        """Where the server is: host and port, and neither user nor password."""
        return self._source.place

    @property
    def replicable(self) -> bool:
        """False where there can be no replica to wait for."""
        return self._source.replicable

    def about_server(self) -> dict[str, str]:
        """Return what INFO says; empty where the server does not, or may not, say."""
        try:
            raw = self._source.command("INFO")
        except Exception:
            # The warnings that this serves are worth no failure: an emulation has no
            # INFO, and a careful ACL forbids it.
            return {}
        if isinstance(raw, dict):
            return {str(name): str(value) for name, value in raw.items()}
        lines = codec.text(raw).splitlines() if isinstance(raw, bytes) else []
        return dict(line.split(":", 1) for line in lines if ":" in line)

    # Life and death

    def close(self) -> None:
        """Drop the connections. A later call makes new ones."""
        self._line.close()

    def release(self) -> None:
        """Drop the connections, and with them the hold on an embedded server."""
        # Which may end with that, and all its data.
        self.witness.forget()
        self.reopen()
        self._line.close()
        self._source.close()
        if self._ears is not self._source:
            self._ears.close()

    def after_fork(self) -> None:
        """Start anew in a forked child."""
        self.witness.after_fork()
        self._line.after_fork()
        self._source.after_fork()
        if self._ears is not self._source:
            self._ears.after_fork()

    @staticmethod
    def slow(error: BaseException | None) -> bool:
        """Tell whether *error* is one that only a person can mend."""
        return faults.slow(error)
