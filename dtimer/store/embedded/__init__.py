"""
The embedded server: a real one, with no installation and no port.

``embedded:`` is a server in memory, private to a process tree. ``embedded:///a/folder``
is one that keeps its data in that folder. The first process to attach starts it, later
ones find it by its unix socket, and it ends when the last of them leaves, in whatever way
that one ends.

Nothing here knows redis: what is given is the path of a socket.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from dtimer.errors import StoreError
from dtimer.store.embedded.binary import find_binary, missing, supported
from dtimer.store.embedded.folder import check, check_folder, make_private, of_tree, state_folder
from dtimer.store.embedded.hold import Registry
from dtimer.store.embedded.premises import remove

__all__ = ["Attachment", "attach", "attach_folder", "available", "check", "state_folder"]

_registry = Registry()


class Attachment:
    """
    One user's part in an embedded server, which is there until the last one closes.

    A process has one hold for all its attachments, and a forked child inherits it. A
    process that just ends lets go of it too, so nobody has to close: closing is for those
    who want the server to end before they do. A program that is started, rather than
    forked, inherits nothing and must attach itself.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._user = object()
        self._hold = _registry.take(folder, kind, self._user)

    @property
    def socket(self) -> str:
        """The path of the server's unix socket. A server started again has the same."""
        return self._hold.address

    @property
    def folder(self) -> Path:
        """The folder of the server."""
        return self._hold.folder

    def renew(self) -> bool:
        """
        See that the server is kept, and start it again if it is not.

        A keeper starts a server that ended again by itself. If the keeper was killed too
        nobody does, until somebody asks: for those whose connections fail. It costs next
        to nothing when all is well.

        Returns:
            Whether it had to be started. Then a server in memory is empty.

        Raises:
            StoreError: it could not be started, or this attachment is closed.
        """
        if not self._is_open():
            raise StoreError("this attachment to an embedded server is closed")
        return _registry.renew(self._hold)

    def close(self) -> None:
        """Leave the server. Idempotent."""
        _registry.release(self._hold, self._user)

    def _is_open(self) -> bool:
        return self._user in self._hold.users

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Attachment to {str(self.folder)!r}{'' if self._is_open() else ', closed'}>"


def attach(url: str) -> Attachment:
    """
    Take part in the server that *url* names; start it if nobody did yet.

    Args:
        url:
            ``embedded:`` for the server in memory of this process tree: those that
            descend from the first process to attach meet in it, by the environment
            variable ``DTIMER_EMBEDDED``. It begins empty, and leaves nothing behind.

            ``embedded:///some/folder`` for the server that keeps its data there, for all
            processes of this user. What a folder's name may not hold in a URL is written
            as ``%20``.

    Raises:
        OptionError: it is not such a URL.
        StoreError: there is no server to be had, and what to do about it.
    """
    folder = check(url)
    if folder is not None:
        return attach_folder(folder)
    _check_platform()
    tree = of_tree()
    try:
        return Attachment(tree, "memory")
    except StoreError:
        # We may just have made it, for nothing.
        remove(str(tree))
        raise


def attach_folder(folder: str | os.PathLike[str]) -> Attachment:
    """
    Take part in the server that keeps its data in *folder*; start it if nobody did yet.

    What was acknowledged survives the end of the server, even a violent one; of what was
    acknowledged in the last second, a crash of the machine may take some.

    Raises:
        OptionError: *folder* is not an absolute path.
        StoreError: there is no server to be had, and what to do about it.
    """
    path = check_folder(folder)
    _check_platform()
    make_private(path)
    # Two names of one folder must meet in one hold.
    return Attachment(Path(os.path.realpath(path)), "disk")


def available() -> bool:
    """
    Return whether there is a server to run here.

    Raises:
        StoreError: ``DTIMER_SERVER`` names one that cannot be run.
    """
    return supported() and find_binary() is not None


def _check_platform() -> None:
    if not supported():
        raise missing()
