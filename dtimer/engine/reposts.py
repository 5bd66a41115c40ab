"""
What this process posts anew while claims wait to be read by it.

A claim that was asked for before is, most likely, of what was replaced. Given back it does no
harm: what is stale is ignored, and what is not is claimed again at once.
"""

from __future__ import annotations

from collections.abc import Collection


class Reposts:
    """
    For any thread. Questions are numbered upwards; their answers come in that order.

    Without a lock: each change is one step of the interpreter, so that a signal handler may post
    while a post is interrupted here, and may leave while the claimer needs this.
    """

    def __init__(self) -> None:
        # The last question that asked for claims; None while no claim is on its way.
        self._asked: int | None = None
        # Of each id the last question that had been asked before it was posted.
        self._ids: dict[str, int] = {}

    def begin(self, seq: int) -> None:
        """Note that claims are asked for. Those of the question before may not be here yet."""
        self._asked = seq
        for id, asked in list(self._ids.items()):
            # What was noted again since it was listed is put back.
            if asked < seq - 1 and self._ids.pop(id, -1) >= seq - 1:
                self._ids[id] = seq

    def end(self) -> None:
        """Note that no claims are on their way any more."""
        self._asked = None
        self._ids.clear()

    def add(self, ids: Collection[str]) -> None:
        """Note what is about to be posted anew."""
        asked = self._asked
        if asked is not None:
            self._ids.update(dict.fromkeys(ids, asked))

    def since(self, seq: int) -> set[str]:
        """Return what was posted anew after a question was asked."""
        if not self._ids:
            return set()
        return {id for id, asked in list(self._ids.items()) if asked >= seq}
