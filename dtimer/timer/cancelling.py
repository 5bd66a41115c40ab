"""Cancel many events: a hundred in one script call, from a list or from an endless iterator."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping

from dtimer.errors import OptionError
from dtimer.model.ids import check_id
from dtimer.model.records import Cancelled
from dtimer.store.store import Store

# The most ids in one script call: about a millisecond of the server's time.
_MOST_IDS = 100


def cancel_many(store: Store, ids: Iterable[str]) -> dict[Cancelled, int]:
    """See `DTimer.cancel_many`."""
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise OptionError(
            f"cancel_many takes several ids, not {type(ids).__name__}; cancel takes a single one"
        )
    # Of a collection, check all ids before any is cancelled. An iterator may be endless.
    each = [check_id(id) for id in ids] if isinstance(ids, Collection) else map(check_id, ids)
    remaining = iter(each)
    counts = dict.fromkeys(Cancelled, 0)
    try:
        while some := list(itertools.islice(remaining, _MOST_IDS)):
            for outcome in store.cancel_some(some):
                counts[outcome] += 1
    except Exception as e:
        e.add_note(f"cancel_many was done with {sum(counts.values())} ids before")
        raise
    return counts
