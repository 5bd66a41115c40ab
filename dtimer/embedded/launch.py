"""
Starts a supervisor. This file is run by its path, and never imported.

Empty packages stand in for ``dtimer`` and the packages in it. The real ones would import redis,
which takes ten times as long as starting a supervisor without it.
"""

from __future__ import annotations

import sys
from types import ModuleType

_embedded = __file__.rpartition("/")[0]
_root = _embedded.rpartition("/")[0]
for _name, _path in ("dtimer", _root), ("dtimer.embedded", _embedded):
    sys.modules[_name] = _package = ModuleType(_name)
    _package.__path__ = [_path]

from dtimer.embedded.supervisor import main  # noqa: E402 - needs the packages above

main(*sys.argv[1:])
