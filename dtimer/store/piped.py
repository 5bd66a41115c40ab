"""What a pipeline of the caller's already holds of our scripts."""

from __future__ import annotations

import weakref
from typing import Any

from dtimer.store.scripts import Script


def _words(command: Any) -> Any:
    # A cluster's pipeline may keep objects instead of tuples. Their commands can go to different
    # servers.
    return command[0][:2] if isinstance(command, tuple) else None


class Piped:
    """Where in each pipeline a script was put whole. For any thread, as its pipeline is not."""

    def __init__(self) -> None:
        self._places: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()

    def words(self, pipe: Any, script: Script) -> tuple[str, bytes]:
        """
        Return the first two words of a call of *script*, which is about to be put into *pipe*.

        A script that an earlier command of the same pipeline carries is known to the server by
        then. Where it cannot be seen what a pipeline holds (that of a cluster), each carries it.
        """
        stack = getattr(pipe, "command_stack", None)
        if not isinstance(stack, list):
            return "EVAL", script.source
        places = self._places.setdefault(pipe, {})
        at = places.get(script.name)
        # A pipeline that was executed or reset begins with an empty stack.
        if at is not None and at < len(stack) and _words(stack[at]) == ("EVAL", script.source):
            return "EVALSHA", script.sha
        places[script.name] = len(stack)
        return "EVAL", script.source
