"""Which folder: the one named by a URL, the one of this process tree, the one of this user."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

from dtimer.errors import OptionError, StoreError
from dtimer.store.embedded.premises import PREFIX, private

#: Tells the processes of a tree where their common server in memory is.
TREE = "DTIMER_EMBEDDED"

SCHEME = "embedded:"


def check(url: object) -> Path | None:
    """
    Return the folder that *url* names, or None for ``embedded:``, which names none.

    Raises:
        OptionError: it is not such a URL. Nothing was looked at on the disk.
    """
    if not isinstance(url, str):
        raise OptionError(f"the URL of a store must be a str, not {type(url).__name__}")
    if not url.startswith(SCHEME):
        raise OptionError(f"the URL of an embedded server begins with {SCHEME!r}")
    rest = url.removeprefix(SCHEME)
    if not rest:
        return None
    if not rest.startswith("///"):
        raise OptionError(
            f"{url!r} names no folder: write 'embedded:' for a server in memory, or the absolute "
            f"path of a folder after three slashes, as in 'embedded:///var/lib/timers'"
        )
    if mark := next((mark for mark in "?#" if mark in rest), None):
        raise OptionError(f"{url!r} takes no {mark!r}; a folder's name writes it %{ord(mark):X}")
    return check_folder(unquote(rest[2:], errors="surrogateescape"))


def check_folder(path: object) -> Path:
    """
    Return *path* when it may be the folder of a server.

    Raises:
        OptionError: it may not. Nothing was looked at on the disk.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OptionError(f"the folder must be a path, not {path!r} ({type(path).__name__})")
    folder = Path(os.fsdecode(path))
    if not folder.is_absolute() or "\0" in str(folder) or not folder.name:
        raise OptionError(f"the folder must have an absolute path below /, not {str(folder)!r}")
    return folder


def make_private(folder: Path) -> None:
    """
    Make *folder*, closed to everybody else, or check that nobody else can change it.

    Raises:
        StoreError: it cannot be made, is somebody else's, or others may write to it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise StoreError(f"the folder {str(folder)!r} belongs to another user")
        others = stat.S_IWGRP | stat.S_IWOTH
        if found.st_mode & others and not any(folder.iterdir()):
            # It was made for us, with a lenient umask.
            folder.chmod(0o700)
        elif found.st_mode & others:
            raise StoreError(
                f"others may write to the folder {str(folder)!r}: take that from them "
                f"(chmod go-w), or name a folder that does not exist yet"
            )
    except OSError as e:
        raise StoreError(f"the folder {str(folder)!r} cannot be used: {e.strerror}") from e
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"the folder {str(folder)!r} is not writable")


def of_tree() -> Path:
    """
    Return the folder of the server in memory that this process tree shares.

    The first to ask makes it and exports its name; those started from here on inherit
    that. A name that is stale, because its server ended, is good for the next server:
    whoever else inherited it meets us there.
    """
    told = Path(os.environ.get(TREE, ""))
    # Its keeper clears it away in the end, so it must be one of ours by its name; and since
    # it was told to us, somebody else may have made it.
    ours = told.is_absolute() and told.name.startswith(PREFIX)
    if ours and (private(str(told)) or not os.path.lexists(told)):
        return told
    made = os.path.realpath(tempfile.mkdtemp(prefix=PREFIX))
    os.environ[TREE] = made
    return Path(made)


def state_folder() -> Path:
    """
    Return the folder of the server that all of this user's terminals share; makes it.

    ``dtimer/embedded`` in ``XDG_STATE_HOME``, which is ``~/.local/state`` unless set.

    Raises:
        StoreError: it cannot be made, or others have a say in it.
    """
    if sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support" / "dtimer"
    else:
        state = os.environ.get("XDG_STATE_HOME", "")
        # The standard says that a relative one is to be ignored.
        base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
        folder = base / "dtimer" / "embedded"
    make_private(folder)
    return folder
