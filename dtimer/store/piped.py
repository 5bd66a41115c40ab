"""Track which scripts a pipeline of the caller already contains."""

from __future__ import annotations

import weakref
from typing import Any

from dtimer.store.scripts import Script


def _first_words(command: Any) -> Any:
    """Return the first two words of a command in a pipeline; None for one of a cluster."""
    # The pipeline of a cluster may hold objects instead of tuples. Their commands can go to
    # different servers, so an earlier command does not prove that the server has the script.
    return command[0][:2] if isinstance(command, tuple) else None


class Piped:
    """
    Remembers at which position of each pipeline the source of a script is.

    Threads may share it without a lock, because each of them uses only its own pipelines.
    """

    def __init__(self) -> None:
        self._places: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()

    def first_words(self, pipe: Any, script: Script) -> tuple[str, bytes]:
        """
        Return the first two words of the next call of *script* in *pipe*.

        If an earlier command of the pipeline contains the source, the server knows the script, and
        its SHA1 is enough. If the commands of a pipeline cannot be inspected (as in a cluster),
        each call contains the source.
        """
        stack = getattr(pipe, "command_stack", None)
        if not isinstance(stack, list):
            return "EVAL", script.source
        places = self._places.setdefault(pipe, {})
        at = places.get(script.name)
        # After it is executed or reset, a pipeline is empty, so check that the source is there.
        if (
            at is not None
            and at < len(stack)
            and _first_words(stack[at]) == ("EVAL", script.source)
        ):
            return "EVALSHA", script.sha
        places[script.name] = len(stack)
        return "EVAL", script.source
