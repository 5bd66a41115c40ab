"""Determine from the threads of a node whether it makes progress."""

from __future__ import annotations

import time

from dtimer.engine.callbacks import CallbackThread
from dtimer.engine.claimer import Claimer
from dtimer.engine.dispatcher import Dispatcher
from dtimer.engine.seat import Seat
from dtimer.engine.service import Service
from dtimer.model.records import Health
from dtimer.timer.joiner import Joiner


def examine(
    claimer: Claimer,
    seat: Seat,
    callbacks: CallbackThread,
    dispatcher: Dispatcher,
    joiner: Joiner,
    *,
    joined: bool,
    listening: bool,
) -> Health:
    """
    Return the health of a node that joins or has joined.

    Args:
        claimer: The node's claimer.
        seat: The node's seat. Has the node's listener.
        callbacks: The node's callback thread.
        dispatcher: The node's dispatcher.
        joiner: The node's joiner.
        joined: Whether the node has joined.
        listening: Whether the node has a listener of ``'event'``.
    """
    listener = seat.listener
    services: list[Service] = [claimer, listener, callbacks, joiner, *dispatcher.pool.threads]
    now = time.monotonic()
    answered, heard = seat.contact.answered, listener.heard
    age = None if answered is None else (now - answered) * 1000
    # Between two replies a node waits at most a poll interval. One second is added for an attempt
    # that fails, and for the pause after it.
    fresh = age is not None and age < seat.options.poll_interval / 1e3 + 1_000
    deaf = not listener.hears
    failing = [s.failure for s in services if s.failure is not None]
    error: BaseException | None = joiner.error or seat.connectivity.error or seat.capacity.error
    if error is None and failing:
        error = failing[0]
    return Health(
        ok=joined and fresh and error is None and not deaf,
        joined=joined,
        deaf=deaf,
        claim_age_ms=age,
        heard_age_ms=None if heard is None else (now - heard) * 1000,
        handlers=dispatcher.pool.busy,
        stuck=seat.leases.stuck(),
        error=None if error is None else str(error) or repr(error),
        restarts=sum(s.failures for s in services),
        listening=listening,
        dropped=callbacks.dropped,
        joining=not joined,
        unreadable=seat.leases.unreadable.count,
        unknown=seat.unknown_kinds.count,
    )
