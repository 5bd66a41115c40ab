"""A namespace: the check when it is opened, and calls of its scripts."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, TypeVar

from dtimer.errors import NamespaceCorrupt, OutcomeUnknown, StoreError
from dtimer.model.ids import incarnation
from dtimer.store import replies
from dtimer.store.calls import ReplicatedCall
from dtimer.store.format import text
from dtimer.store.reply_checks import flag, understood
from dtimer.store.rollback import NamespaceState, RollbackDetector
from dtimer.store.script_client import ScriptClient
from dtimer.store.scripts import Verb, header, verb

#: The version of the stored formats, also in ``lua/parts/prelude.lua``. Raise both if an older
#: version would misread what this one stores, or would store what this one misreads. A field that
#: the other version skips or may omit, such as one after the mark of a body, needs no new version.
SCHEMA = "2"

#: The version before, which this dtimer reads and writes, too: a namespace keeps it until
#: `dtimer upgrade`. Version 2 is the first that is released.
PREVIOUS = "2"

#: The version that was never released. Its namespaces are only read, to export them.
UNRELEASED = "1"

#: A node that has made no claim for this long is removed from the list of nodes.
SILENT_US = 60_000_000

T = TypeVar("T")

_OPEN = verb("open", "schema", "mark")


class Namespace:
    """
    Opens a namespace, and calls scripts on it once it is open.

    Args:
        ns: The name of the namespace.
        scripts: Runs the scripts.
        rollback: Checks the state of the namespace when it is opened.
    """

    def __init__(self, ns: str, scripts: ScriptClient, rollback: RollbackDetector) -> None:
        self._ns = ns
        self.scripts: ScriptClient = scripts
        self._rollback = rollback
        self._opened = False
        #: True for an export, which also reads a namespace of the unreleased version.
        self.exports: bool = False

    def open(self) -> None:
        """
        Check that dtimer can use the namespace, and create it if it does not exist.

        Raises:
            NamespaceCorrupt: One of its keys holds a value of another type, or this version of
                dtimer does not know the schema version.
        """
        self._open(self.scripts.deadline())

    def exists(self) -> bool:
        """
        Return True if the namespace exists, without creating it.

        Raises:
            NamespaceCorrupt: As in `open`.
        """
        self._open(self.scripts.deadline(), create=False)
        return self._opened

    def _open(self, deadline: float, *, create: bool = True) -> None:
        if self._opened:
            return
        before = self._rollback.known
        version, state = self.read_state(deadline, create=create)
        if not version:
            self._rollback.opened(before, state)
            return
        if version not in {SCHEMA, PREVIOUS} and not (self.exports and version == UNRELEASED):
            raise NamespaceCorrupt(self._unknown(version))
        self._opened = True
        self._rollback.opened(before, state)

    def _unknown(self, version: str) -> str:
        """Return why this dtimer refuses a namespace of *version*, and the remedy."""
        if version != UNRELEASED:
            known = f"and this dtimer knows version {SCHEMA}: upgrade it"
            return f"the namespace has the schema version {version}, {known}"
        return (
            f"the namespace has the schema version {version}, of a dtimer before 1.0. Two commands"
            f" carry it over: `dtimer export old.jsonl --dead --ns {shlex.quote(self._ns)}`, and"
            " `dtimer import old.jsonl --ns` with a new name"
        )

    def read_state(self, deadline: float, *, create: bool) -> tuple[str, NamespaceState]:
        """Return the schema version and the state; with *create*, create a missing namespace."""
        # The random mark of a new namespace. Any unique text will do.
        mark = incarnation() if create else ""
        reply = self.scripts.call(_OPEN, SCHEMA, mark, deadline=deadline)
        return understood(_OPEN, lambda r: (text(r[1]), replies.read_namespace_state(r)), reply)

    def reopen(self) -> None:
        """Have the next call open the namespace again, because it may have changed."""
        self._opened = False

    def server_now(self, until: float | None = None) -> int:
        """Return the server's time in µs; *until* is the deadline of the call."""
        deadline = self.scripts.deadline() if until is None else until
        return self.read_state(deadline, create=False)[1].now

    def call(self, verb: Verb, *arguments: str, until: float | None = None) -> Any:
        """Call a script, and return its reply as the client library read it; see `ask`."""
        deadline = self.scripts.deadline() if until is None else until
        if not self._opened:
            self._open(deadline, create=header(verb).kind != "reads")
        return self.scripts.call(verb, *arguments, deadline=deadline)

    def ask(
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
        return understood(verb, read, self.call(verb, *arguments, until=until))

    def change(self, on_change: Callable[[], None], verb: Verb, *arguments: str) -> bool:
        """
        Run the script *verb*; return True if it changed anything.

        Calls *on_change* if the script changed anything, or if its outcome is unknown.
        """
        changed = True
        try:
            changed = self.ask(flag, verb, *arguments)
            return changed
        except StoreError as e:
            changed = isinstance(e, OutcomeUnknown)
            raise
        finally:
            if changed:
                on_change()

    def call_replicated(self, verb: Verb, *arguments: str, replicas: int) -> ReplicatedCall:
        """Call a script, and wait until *replicas* replicas have what it wrote."""
        deadline = self.scripts.deadline()
        self._open(deadline)
        return self.scripts.call_replicated(verb, *arguments, deadline=deadline, replicas=replicas)
