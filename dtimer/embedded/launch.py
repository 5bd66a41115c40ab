"""
Starts a supervisor. This file is run by its path, and never imported.

Empty packages stand in for ``dtimer`` and the packages in it. The real ones would import redis,
which takes ten times as long as starting a supervisor without it.
"""

from __future__ import annotations

import sys
from types import ModuleType

embedded = __file__.rpartition("/")[0]
root = embedded.rpartition("/")[0]
for name, path in ("dtimer", root), ("dtimer.embedded", embedded):
    sys.modules[name] = package = ModuleType(name)
    package.__path__ = [path]

from dtimer.embedded.supervisor import main  # noqa: E402 - needs the packages above

main(*sys.argv[1:])
