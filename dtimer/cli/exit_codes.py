"""The exit codes of the command line."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """The exit codes, which ``dtimer --help`` lists."""

    DONE = 0
    """The command succeeded."""

    NEGATIVE = 1
    """
    The command ran, and its result is negative. For example: there is no such event, the event
    exists already, the namespace is not healthy, or a node left while handlers were running.
    """

    USAGE = 2
    """
    The command was not understood. Nothing was done, and Redis was not asked.

    Or a line of an imported file was not understood. The lines before it were imported.
    """

    SERVER = 3
    """
    Redis could not be reached, Redis refused the command, its reply was lost, too few replicas have
    the event, or ``dtimer doctor`` found an error.
    """

    IMPORT = 4
    """
    The handler could not be imported, or the packages that the command line needs are not
    installed.
    """

    STARTED = 5
    """The event was delivered before it could be cancelled. It will not be retried."""

    OUTPUT = 6
    """
    The output could not be written, for example to a full disk. The command may have taken
    effect.
    """

    INTERRUPTED = 130
    """Ctrl-C ended the command. The code is 128 plus the number of the signal, as in a shell."""
