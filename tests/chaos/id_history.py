"""Sort the recorded operations on one id by their kinds and generations."""

from __future__ import annotations

from chaos.history import HistoryError, Operation
from chaos.lease_checker import Generation


class IdHistory:
    """
    The generations of an id, and the calls that refer to no particular generation.

    Args:
        id: The id.
        operations: All recorded operations on the id.
        nameless: Posts with an unknown outcome and an unknown generated id, by their serial.
    """

    def __init__(
        self, id: str, operations: list[Operation], nameless: dict[int, Operation]
    ) -> None:
        self.id = id
        self._nameless = nameless
        self.generations: dict[int | None, Generation] = {}
        self.cancels: list[Operation] = []
        self.moves: list[Operation] = []
        self.revivals: list[Operation] = []
        self.updates: list[Operation] = []
        self.drops: list[Operation] = []
        self.strays: list[Operation] = []
        rest = []
        for op in operations:
            if op.op == "post":
                n = op.data.get("n")
                if n in self.generations:
                    raise HistoryError(f"two posts of {id!r} have the serial {n!r}")
                self.generations[n] = Generation(id, op)
            else:
                rest.append(op)
        for op in rest:
            self._sort(op)

    def _sort(self, op: Operation) -> None:
        if op.op == "cancel":
            self.cancels.append(op)
        elif op.op == "reschedule":
            self.moves.append(op)
        elif op.op == "revive":
            self.revivals.append(op)
        elif op.op == "update":
            self.updates.append(op)
        elif op.op == "drop":
            self.drops.append(op)
        elif (gen := self._whose(op)) is None:
            if op.op == "run" or (op.op in ("dead", "expired") and op.data.get("n") is not None):
                self.strays.append(op)
        else:
            gen.add(op)

    def _whose(self, op: Operation) -> Generation | None:
        if op.data.get("n") is None and op.op != "run" and len(self.generations) == 1:
            return next(iter(self.generations.values()))
        n = op.data.get("n")
        if n not in self.generations and n in self._nameless:
            # The id was generated in a call whose end was not recorded.
            self.generations[n] = Generation(self.id, self._nameless[n])
        return self.generations.get(n)

    def bury(self, letter: Operation) -> None:
        """Add a dead letter that was present at the end."""
        if (gen := self._whose(letter)) is not None:
            gen.letters.append(letter)
