"""The registration of a node in its namespace, and the checks of the server that go with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from dtimer.errors import StoreError
from dtimer.log import Log
from dtimer.store.store import Store
from dtimer.timer import preflight
from dtimer.timer.node_store import NodeStore


class Registration:
    """
    Registers one node, and removes its registration.

    Args:
        incarnation: The node's incarnation.
        store: The store.
        node_store: The store, as the node calls it.
        log: The node's log.
    """

    def __init__(self, incarnation: str, store: Store, node_store: NodeStore, log: Log) -> None:
        self._incarnation = incarnation
        self._store = store
        self._node_store = node_store
        self._log = log
        self._server_checked = False
        self._registered = False

    @property
    def steps(self) -> Sequence[Callable[[], None]]:
        """The steps of a registration, in order."""
        # The server is checked again if it was down the first time.
        return self.check_server, self.add, self.check_permissions, self.check_server

    def check_server(self) -> None:
        """Check the settings of the server. Does nothing if it has answered this before."""
        if not self._server_checked:
            self._server_checked = preflight.check_server(self._store, self._log)

    def check_permissions(self) -> None:
        """
        Check the permissions of the Redis user.

        Raises:
            StoreError: a permission that the node needs is missing.
        """
        preflight.check_permissions(self._store, self._log)

    def add(self) -> None:
        """
        Register the node.

        Raises:
            StoreError: Redis does not answer, or refuses the call.
        """
        # Set before the call. An exception from a signal handler may come right after the call,
        # and the registration must then be removed.
        self._registered = True
        try:
            self._node_store.register()
        except StoreError as e:
            self._registered = False
            if self._store.needs_operator(e):
                # Report all missing permissions at once, not just the first that was refused.
                preflight.require_permissions(self._store)
            raise

    def remove(self, *, answered: bool) -> None:
        """
        Remove the registration, if the node has one.

        Args:
            answered: Whether Redis answers. If not, the registration expires by itself.
        """
        if self._registered and answered:
            with contextlib.suppress(StoreError):
                self._store.leave(self._incarnation)
        self._registered = False
