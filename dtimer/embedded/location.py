"""Finds the folder of a server: that of a URL, of this process tree, or of this user."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

from dtimer.embedded.layout import PREFIX, private
from dtimer.errors import OptionError, StoreError

#: The environment variable with the folder of the server that a process tree shares.
TREE = "DTIMER_EMBEDDED"

SCHEME = "embedded:"


def check(url: str) -> Path | None:
    """
    Return the folder that *url* names, or None for ``embedded:``. Does not access the disk.

    Raises:
        OptionError: *url* is not the URL of an embedded server.
    """
    rest = url.removeprefix(SCHEME)
    if not rest:
        return None
    if not rest.startswith("///"):
        raise OptionError(
            f"{url!r} does not name a folder: use 'embedded:' for a server in memory, or the "
            f"absolute path of a folder after three slashes, as in 'embedded:///var/lib/timers'"
        )
    if mark := next((mark for mark in "?#" if mark in rest), None):
        raise OptionError(
            f"{url!r} must not contain {mark!r}; in the name of a folder, write %{ord(mark):X}"
        )
    folder = Path(unquote(rest[2:], errors="surrogateescape"))
    if "\0" in str(folder) or not folder.name:
        raise OptionError(f"the folder must have a path below /, not {str(folder)!r}")
    return folder


def make_private(folder: Path) -> None:
    """
    Make *folder* with access for this user only, or check that no other user may write to it.

    Raises:
        StoreError: *folder* cannot be made, belongs to another user, or is writable for others.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise StoreError(f"the folder {str(folder)!r} belongs to another user")
        others = stat.S_IWGRP | stat.S_IWOTH
        if found.st_mode & others and not any(folder.iterdir()):
            # An empty folder was made for this purpose, with a permissive umask.
            folder.chmod(0o700)
        elif found.st_mode & others:
            raise StoreError(
                f"other users may write to the folder {str(folder)!r}: remove that permission "
                f"(chmod go-w), or name a folder that does not exist yet"
            )
    except OSError as e:
        raise StoreError(f"the folder {str(folder)!r} cannot be used: {e.strerror}") from e
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"the folder {str(folder)!r} is not writable")


def tree_folder() -> Path:
    """
    Return the folder of the server in memory that this process tree shares.

    The first call makes the folder and sets the environment variable, which child processes
    inherit. If that server has ended, its folder is used for the next server, because other
    processes of the tree may have inherited the same name.
    """
    inherited = Path(os.environ.get(TREE, ""))
    # The supervisor removes this folder at the end, so accept only a name that dtimer gives.
    # Another user may have made a folder of that name, so it must be private, too.
    ours = inherited.is_absolute() and inherited.name.startswith(PREFIX)
    if ours and (private(str(inherited)) or not os.path.lexists(inherited)):
        return inherited
    made = os.path.realpath(tempfile.mkdtemp(prefix=PREFIX))
    os.environ[TREE] = made
    return Path(made)


def state_folder() -> Path:
    """
    Return the folder of the server that this user's terminals share, and make it if necessary.

    On Linux, ``dtimer/embedded`` in ``XDG_STATE_HOME``, which defaults to ``~/.local/state``.

    Raises:
        StoreError: the folder cannot be made, or is not private to this user.
    """
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support" / "dtimer"
    else:
        state = os.environ.get("XDG_STATE_HOME", "")
        # The XDG standard says to ignore a relative path.
        base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
        folder = base / "dtimer" / "embedded"
    make_private(folder)
    return folder
