"""The Redis server that has a namespace: its connections, its INFO, and its permissions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtimer.errors import StoreError
from dtimer.store import acl, failures
from dtimer.store.connection.sources import Source
from dtimer.store.connection.subscription import Subscription
from dtimer.store.format import text
from dtimer.store.keys import Keys
from dtimer.store.reply_checks import pairs, understood
from dtimer.store.script_client import ScriptClient
from dtimer.store.scripts import verb

_PERMISSIONS = verb("permissions")


class Server:
    """
    The server that has a namespace.

    Args:
        source: Makes the connections for scripts.
        pubsub_source: Makes the connections for pub/sub; may be the same.
        keys: The keys of the namespace.
        timeout: The deadline of a call, in seconds.
    """

    def __init__(self, source: Source, pubsub_source: Source, keys: Keys, timeout: float) -> None:
        #: Runs single commands, and has the address for messages.
        self.source: Source = source
        self._pubsub_source = pubsub_source
        self._keys = keys
        self._timeout = timeout

    def info(self) -> dict[str, str]:
        """Return the fields of INFO; empty if the server has no INFO or refuses it."""
        try:
            raw: Any = self.source.command("INFO")
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

    def permissions(self) -> dict[str, str]:
        """
        Return the commands that this client may not or cannot run, each with the server's reason.

        Raises:
            StoreError: The server did not answer.
        """
        # Use a fixed time and the source of the script, because TIME or EVALSHA itself may be
        # among the refused commands.
        client = ScriptClient(self.source, self._keys, self._timeout, lambda: 1)
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

    def subscription(self, channels: Sequence[str]) -> Subscription:
        """Return a subscription to *channels*, not yet opened."""
        return self._pubsub_source.subscription(self._keys, channels)

    def release(self) -> None:
        """Close the connections of the sources, and stop keeping an embedded server alive."""
        self.source.close()
        if self._pubsub_source is not self.source:
            self._pubsub_source.close()

    def after_fork(self) -> None:
        """Discard, in a forked child, the connections that belong to the parent."""
        self.source.after_fork()
        if self._pubsub_source is not self.source:
            self._pubsub_source.after_fork()
