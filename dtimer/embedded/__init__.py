"""
The embedded server: a real Redis-compatible server that needs no installation and no port.

``embedded:`` is a server in memory, private to a process tree. ``embedded:///a/folder`` is a server
that keeps its data in that folder. The first process to attach starts the server, and later
processes find it by its unix socket. The server ends when the last of these processes closes its
attachment, or has itself ended, even if that process was killed.

This package does not import redis. It only returns the path of a socket.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from dtimer.embedded.binary import find_binary, missing, supported
from dtimer.embedded.handle import Registry
from dtimer.embedded.layout import remove
from dtimer.embedded.location import check, make_private, state_folder, tree_folder
from dtimer.errors import StoreError

__all__ = ["Attachment", "attach", "available", "check", "state_folder"]

_registry = Registry()


class Attachment:
    """
    Keeps an embedded server running until the last attachment to it is closed.

    A process has one handle for all its attachments to a server, and a forked child inherits the
    handle. The kernel closes the handle when the process ends, so `close` is only needed to end
    the server earlier. A new program, unlike a forked child, inherits nothing and must attach.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._user = object()
        self._handle = _registry.acquire(folder, kind, self._user)

    @property
    def socket(self) -> str:
        """The path of the server's unix socket. A restarted server has the same path."""
        return self._handle.address

    @property
    def folder(self) -> Path:
        """The folder of the server."""
        return self._handle.folder

    def renew(self) -> bool:
        """
        Start the server again if its supervisor has ended.

        The supervisor restarts a server that ended. But if the supervisor itself was killed, the
        server is only restarted by this call. Call it after a connection has failed. It is cheap
        if the supervisor is alive.

        Returns:
            True if the server had to be started. A server in memory is then empty.

        Raises:
            StoreError: the server could not be started, or this attachment is closed.
        """
        if not self._is_open():
            raise StoreError("this attachment to an embedded server is closed")
        return _registry.renew(self._handle)

    def close(self) -> None:
        """Close the attachment. Further calls do nothing."""
        _registry.release(self._handle, self._user)

    def _is_open(self) -> bool:
        return self._user in self._handle.users

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
    Attach to the server that *url* names, and start the server if it is not running.

    Args:
        url:
            ``embedded:`` for the server in memory of this process tree. The first process that
            attaches sets the environment variable ``DTIMER_EMBEDDED``, by which its descendants
            find the server. The server starts empty and leaves no files.

            ``embedded:///some/folder`` for the server that keeps its data in that folder, for all
            processes of this user. Percent-encode characters that a URL cannot contain; a space,
            for example, is ``%20``. Acknowledged writes survive the end of the server, even if it
            is killed. A crash of the machine may lose those of the last second.

    Raises:
        OptionError: *url* is not such a URL.
        StoreError: the server could not be started. The text says what to do.
    """
    folder = check(url)
    if not supported():
        raise missing()
    if folder is not None:
        make_private(folder)
        # Resolve links, so that two paths of one folder share one handle.
        return Attachment(Path(os.path.realpath(folder)), "disk")
    tree = tree_folder()
    try:
        return Attachment(tree, "memory")
    except StoreError:
        # `tree_folder` may just have made the folder. Remove it if it is empty.
        remove(str(tree))
        raise


def available() -> bool:
    """
    Return True if a server program was found and this platform can run it.

    Raises:
        StoreError: ``DTIMER_SERVER`` names a program that cannot be run.
    """
    return supported() and find_binary() is not None
