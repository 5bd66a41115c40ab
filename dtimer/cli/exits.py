"""What an exit code says, one number to one meaning."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """The exit codes; they are told in ``dtimer --help``."""

    DONE = 0
    """What was asked for has been done."""

    NO = 1
    """Redis was asked, and the answer is no: there is no such event, or there is one."""

    USAGE = 2
    """The command cannot be understood. Nothing was done, nobody was asked."""

    SERVER = 3
    """Redis could not be reached, or refused, or its answer was lost; or replicas are missing."""

    IMPORT = 4
    """Something cannot be imported: the handler, or the extra that the command line is."""

    STARTED = 5
    """Too late to cancel: the event has been handed out. No retry of it will follow."""

    OUTPUT = 6
    """The output could not be written: a full disk, for example. What was asked for may be done."""

    INTERRUPTED = 130
    """Ended by Ctrl-C, as a shell counts it."""
