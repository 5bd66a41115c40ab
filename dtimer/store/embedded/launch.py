"""
Starts a keeper. Run by its path, never imported.

Empty packages take the place of ``dtimer`` and those in it: their own ``__init__`` would
import redis, which takes ten times as long as all that a keeper does until it is up.
"""

from __future__ import annotations

import sys
from types import ModuleType

embedded = __file__.rpartition("/")[0]
store = embedded.rpartition("/")[0]
root = store.rpartition("/")[0]
for name, path in ("dtimer", root), ("dtimer.store", store), ("dtimer.store.embedded", embedded):
    sys.modules[name] = package = ModuleType(name)
    package.__path__ = [path]

from dtimer.store.embedded.keeper import main  # noqa: E402 - the packages come first

main(*sys.argv[1:])
