"""
Single attempts to call a script: `run`, `ReplicatedCall` and `PendingCall`.

`run` sends a call and receives its reply. `ReplicatedCall` then also waits for replicas.
`PendingCall` sends a call now, and receives its reply later. An attempt ends at *until*, or at the
later *limit* while bytes of the reply arrive. Both are times on the monotonic clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from dtimer.errors import StoreError
from dtimer.store.connection.cluster import ClusterConnection
from dtimer.store.connection.connection import Argument, Connection, is_a_reply
from dtimer.store.failures import Failure, classify
from dtimer.store.scripts import Script

# How many seconds late the server may notice that the timeout of a WAIT has passed.
_OVERSHOOT = 0.1

AnyConnection = Connection | ClusterConnection


def run(
    connection: AnyConnection,
    script: Script,
    arguments: Sequence[Argument],
    until: float,
    limit: float,
    *,
    is_sent: bool = False,
) -> Any:
    """
    Run a script by its SHA1, or by its source if the server does not have it.

    With *is_sent*, the script was sent by its SHA1 already: receive its reply.
    """
    try:
        if is_sent:
            return connection.receive(until, limit)
        return connection.run(script, arguments, until, limit)
    except Exception as e:
        if classify(e, connection.sent) is not Failure.NO_SCRIPT:
            raise
    # Nothing ran, because the server was restarted, promoted, or has run SCRIPT FLUSH.
    return run_with_source(connection, script, arguments, until, limit)


def run_with_source(
    connection: AnyConnection,
    script: Script,
    arguments: Sequence[Argument],
    until: float,
    limit: float,
) -> Any:
    """Run a script by sending its source."""
    return connection.run(script, arguments, until, limit, with_source=True)


class ReplicatedCall:
    """
    An operation in two steps: run the script, then wait for replicas. The second may fail alone.

    A retry repeats both steps. The script recognises an operation that was already done, and then
    only writes the remembered result again. This write is needed, because WAIT only waits for
    writes that were made on its own connection.
    """

    def __init__(self, replicas: int, deadline: float) -> None:
        self._replicas = replicas
        self._deadline = deadline
        #: True once the operation has certainly taken effect.
        self.done: bool = False
        self.reply: Any = None
        self.acknowledged: int = 0
        #: Why waiting for the replicas failed.
        self.error: StoreError | None = None

    def run(
        self,
        connection: AnyConnection,
        script: Script,
        arguments: Sequence[Argument],
        until: float,
        limit: float,
    ) -> None:
        """Run both steps on one connection."""
        reply = run(connection, script, arguments, until, limit)
        if not self.done:
            # Keep the first reply: the reply to a repetition has fewer details.
            self.done, self.reply = True, reply
        left = self._deadline - time.monotonic()
        # The server checks for expired waits only a few times a second, and its reply takes time.
        wait = max(left / 4, 0.9 * left - _OVERSHOOT, 0.001)
        self.acknowledged = connection.wait(self._replicas, round(wait * 1000), self._deadline)


class PendingCall:
    """
    A call that was sent once, and whose reply the caller must read exactly once.

    Args:
        connection: The connection, which is reserved for this call until its reply is read.
        script: The script to run.
        arguments: The arguments of the script.
        lasts: How many seconds the attempt lasts while no byte of the reply arrives.
        longest: How many seconds it lasts while bytes arrive.
        with_time: Ask for the server's time after the script; see `ended_us`.
        keep_lock: See `Connection.send`.
        end: Called once the connection is free again; its argument is True if the connection
            must be closed.
    """

    def __init__(
        self,
        connection: AnyConnection,
        script: Script,
        arguments: Sequence[Argument],
        *,
        lasts: float,
        longest: float,
        with_time: bool,
        keep_lock: bool,
        end: Callable[[bool], None],
    ) -> None:
        self._connection = connection
        self._script = script
        self._arguments = arguments
        self._lasts = lasts
        self._longest = longest
        self._began = time.monotonic()
        self._end = end
        #: How many bytes of an incomplete reply arrived before the failure; 0 if none.
        self.arrived: int = 0
        #: The server's time after the script, in µs; None if it is not known.
        self.ended_us: int | None = None
        try:
            until, limit = self._began + lasts, self._began + longest
            connection.send(
                script, arguments, until, limit, with_time=with_time, keep_lock=keep_lock
            )
        except BaseException as e:
            self._finish(e)
            raise

    def _finish(self, error: BaseException | None) -> None:
        # After a failure a reply may arrive late, and the next call would read it as its own.
        replied = error is None or is_a_reply(error)
        # A complete reply may also say that this server must not be asked again: it is a replica,
        # for example.
        reconnect = (
            error is not None and classify(error, self._connection.sent) is Failure.RECONNECT
        )
        self._end(reconnect or not replied)

    def answer(self, *, read_late: bool = False) -> Any:
        """
        Wait for the reply until the attempt times out, and return it.

        The timeout counts from the sending. Pass *read_late* as True if the caller has done other
        work since then: the timeout then counts from now.

        Raises:
            Exception: The error of the client library, untranslated.
        """
        error: BaseException | None = None
        try:
            began = time.monotonic() if read_late else self._began
            until, limit = began + self._lasts, began + self._longest
            call = self._connection, self._script, self._arguments, until, limit
            reply = run(*call, is_sent=True)
            self.ended_us = self._connection.ended_us
            return reply
        except BaseException as e:
            error = e
            # Read this before `_finish` makes the connection available to other callers.
            self.arrived = self._connection.arrived
            raise
        finally:
            self._finish(error)
