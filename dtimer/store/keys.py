"""Define the names of all keys and channels in Redis."""

from __future__ import annotations

from typing import NamedTuple


class Keys(NamedTuple):
    """
    The keys of a namespace, in the order in which every script receives them.

    The prelude of the scripts explains each key. All keys have the same hash tag, so a cluster
    stores them on one server.
    """

    due: str
    body: str
    lease: str
    tries: str
    dead: str
    graves: str
    sys: str
    memo_a: str
    memo_b: str
    nodes: str
    alive: str
    roster: str
    promise: str
    defs: str
    plans: str
    beats: str

    @classmethod
    def of(cls, ns: str) -> Keys:
        """Return the keys of the namespace *ns*."""
        return cls._make(f"dtimer:{{{ns}}}:{field}" for field in cls._fields)

    def wake(self, incarnation: str) -> str:
        """Return the channel on which a node receives wakes."""
        return f"{self.due[:-3]}wake:{incarnation}"

    def echo(self, incarnation: str) -> str:
        """Return the channel of a node's echoes, by which it knows that it is not deaf."""
        return f"{self.due[:-3]}echo:{incarnation}"
