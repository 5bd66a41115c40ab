"""The exit codes of the command line. Each number has one meaning."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """The exit codes, which ``dtimer --help`` lists."""

    DONE = 0
    """The command was done."""

    NEGATIVE = 1
    """
    The command was understood, but its result is negative. There is no such event, or it exists
    already; the namespace is not healthy; or a node left handlers running.
    """

    USAGE = 2
    """The command was not understood. Nothing was done, and Redis was not asked."""

    SERVER = 3
    """
    Redis could not be reached, refused the command, or its reply was lost; or replicas are
    missing.
    """

    IMPORT = 4
    """An import failed: the handler, or the extra that the command line needs."""

    STARTED = 5
    """Too late to cancel: the event has been delivered. It will not be retried."""

    OUTPUT = 6
    """The output could not be written: a full disk, for example. The command may have been done."""

    INTERRUPTED = 130
    """Ended by Ctrl-C: 128 plus the number of the signal, as in a shell."""
