"""
A network that fails on request: a threaded proxy in front of a server.

A *mode* (delay, blackhole and others) applies to the whole proxy until another is set. A *fault*
applies to a single reply, once.

A socket is always shut down before it is closed. A close in one thread sends nothing while
another thread is in ``recv`` on the same socket.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from servers import PATIENCE, Running, connect

_RESET = struct.pack("ii", 1, 0)  # for SO_LINGER: close discards unsent data and sends a reset


@dataclass
class _Fault:
    kind: str
    match: bytes
    close: bool = True
    length: int = 0


@dataclass(eq=False)
class _Link:
    """A connection of a client, and the proxy's connection to the server for it."""

    client: socket.socket
    server: socket.socket
    pumps: int = 2  # threads that still run; the last one closes the sockets
    ended: bool = False
    armed: _Fault | None = None  # the fault for the next reply: its request was seen
    tail: bytes = b""  # the end of the requests, for a match that spans two reads
    swallowing: bool = False  # dropping the rest of a reply
    mute: bool = False  # the client gets no more replies
    delivered: int = 0  # bytes delivered of the reply to the last request

    def end(self, *, reset: bool) -> None:
        """Make both pumps end. With *reset* the client sees an error, not an end of file."""
        self.ended = True
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            if reset:
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # Shutting down the writing half too would send an orderly end first.
            self.client.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)


class Proxy:
    """
    A TCP proxy in front of *server* that passes everything on until a mode or fault is set.

    A context manager. `close` ends all threads and closes all sockets.
    """

    def __init__(self, server: Running | str) -> None:
        self._upstream = server if isinstance(server, str) else server.url
        self._state = threading.Condition()
        self._mode = "pass"
        self._amount = 0.0
        self._fault: _Fault | None = None
        self._struck = threading.Event()
        self._links: set[_Link] = set()
        self._pumps: list[threading.Thread] = []
        self.port = 0
        self._listen()

    @property
    def url(self) -> str:
        """The URL at which clients reach the server through this proxy."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        with self._state:
            return sum(not link.ended for link in self._links)

    # ------------------------------------------------------------------------------ modes

    def heal(self) -> None:
        """Pass everything on again, the data held back first."""
        self._set("pass")

    def blackhole(self) -> None:
        """Read and hold back everything, in both directions."""
        self._set("blackhole")

    def refuse(self) -> None:
        """Refuse new connections. Open ones continue; see `cut`."""
        self._set("refuse")

    def delay(self, ms: float) -> None:
        """Deliver everything *ms* later, in both directions."""
        self._set("delay", ms / 1000)

    def slice1(self) -> None:
        """Deliver byte by byte."""
        self._set("slice1")

    def throttle(self, rate: float) -> None:
        """Deliver at most *rate* bytes a second, in each direction."""
        self._set("throttle", rate)

    def choke(self, size: int) -> None:
        """Deliver the first *size* bytes of each reply, and hold back the rest."""
        self._set("choke", size)

    def lead_to(self, server: Running) -> None:
        """Connect new clients to another *server*. Open connections continue; see `cut`."""
        self._upstream = server.url

    # ----------------------------------------------------------------------------- events

    def cut(self) -> None:
        """Reset all open connections."""
        for link in self._snapshot():
            self._end(link, reset=True)

    def half_close(self) -> None:
        """Close the server's half of all connections: requests still arrive, replies do not."""
        with self._state:
            for link in self._links:
                link.mute = True
                with contextlib.suppress(OSError):
                    link.client.shutdown(socket.SHUT_WR)

    # ----------------------------------------------------------------------------- faults

    def drop_reply_once(self, match: bytes = b"", *, close: bool = True) -> None:
        """
        Drop the next reply, then close its connection, or keep it open and silent.

        The server has executed the request; the client cannot know.

        Args:
            match: Wait for a request with these bytes, and drop the reply that follows it.
            close: Close the connection after the dropped reply.
        """
        self._plan(_Fault("drop", match, close=close))

    def close_reply_once(self, match: bytes = b"") -> None:
        """Deliver the next reply, then close its connection."""
        self._plan(_Fault("close", match))

    def truncate_reply_once(self, length: int, match: bytes = b"") -> None:
        """Deliver the first *length* bytes of the next reply, then close its connection."""
        self._plan(_Fault("truncate", match, length=length))

    def wait_dropped(self, timeout: float = PATIENCE) -> bool:
        """Wait until the last planned fault has struck; return False if it did not in time."""
        return self._struck.wait(timeout)

    # ------------------------------------------------------------------------------ close

    def close(self) -> None:
        """Close all connections and end all threads. Idempotent."""
        self._stop_listening()
        for link in self._snapshot():
            self._end(link)
        for pump in self._pumps:
            pump.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------- internals

    def _set(self, mode: str, amount: float = 0.0) -> None:
        with self._state:
            before, self._mode, self._amount = self._mode, mode, amount
            self._state.notify_all()
        if mode == "refuse" != before:
            self._stop_listening()
        elif before == "refuse" != mode:
            self._listen()

    def _plan(self, fault: _Fault) -> None:
        with self._state:
            self._struck.clear()
            self._fault = fault

    def _snapshot(self) -> list[_Link]:
        with self._state:
            return list(self._links)

    def _end(self, link: _Link, *, reset: bool = False) -> None:
        with self._state:
            # The first call decides about the reset. Once the link is removed, its descriptor
            # numbers may belong to other sockets.
            if link in self._links and not link.ended:
                link.end(reset=reset)
                self._state.notify_all()

    def _listen(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", self.port))
        self.port = self._socket.getsockname()[1]
        self._stop_reader, self._stop_writer = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept, name="proxy-accept", daemon=True)
        self._acceptor.start()

    def _stop_listening(self) -> None:
        if self._acceptor.is_alive():
            self._stop_writer.send(b"!")
            self._acceptor.join()
            for end in (self._socket, self._stop_reader, self._stop_writer):
                end.close()

    def _accept(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._stop_reader], [], [])
            if self._stop_reader in ready:
                return
            client, _ = self._socket.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                server = connect(self._upstream)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            server.settimeout(None)
            link = _Link(client, server)
            with self._state:
                self._links.add(link)
            self._pumps = [pump for pump in self._pumps if pump.is_alive()]
            for work in (self._requests, self._replies):
                pump = threading.Thread(
                    target=self._pump, args=(work, link), name=f"proxy{work.__name__}", daemon=True
                )
                self._pumps.append(pump)
                pump.start()

    def _pump(self, work: Callable[[_Link], None], link: _Link) -> None:
        try:
            work(link)
        except OSError:
            pass  # the peer is gone, or the proxy ended the link: it ends either way
        finally:
            self._end(link)
            with self._state:
                link.pumps -= 1
                if not link.pumps:
                    self._links.remove(link)
                    link.client.close()
                    link.server.close()

    def _requests(self, link: _Link) -> None:
        while data := link.client.recv(65_536):
            with self._state:
                link.swallowing = False
                link.delivered = 0
                seen = link.tail + data
                if self._fault and self._fault.match in seen:
                    link.armed = self._fault
                link.tail = seen[-100:] if self._fault else b""
            self._deliver(link, link.server, data)

    def _replies(self, link: _Link) -> None:
        while data := link.server.recv(65_536):
            fault = self._due(link)
            if fault and fault.kind == "drop":
                link.swallowing = True
            elif fault and fault.kind == "truncate":
                data = data[: fault.length]
            if not (link.swallowing or link.mute):
                self._deliver(link, link.client, data)
            if fault and fault.close:
                self._end(link)
            if fault:
                self._struck.set()

    def _due(self, link: _Link) -> _Fault | None:
        """Take the fault that applies to the current reply, if there is one."""
        with self._state:
            fault = self._fault
            if fault and (link.armed is fault or not fault.match):
                self._fault = None
                return fault
            return None

    def _bound(self) -> float:
        return self._amount if self._mode == "choke" else math.inf

    def _deliver(self, link: _Link, sink: socket.socket, data: bytes) -> None:
        with self._state:
            if self._mode == "delay":
                self._state.wait_for(lambda: link.ended or self._mode != "delay", self._amount)
        rest = memoryview(data)
        while rest:
            with self._state:
                self._state.wait_for(lambda: link.ended or self._mode != "blackhole")
                mode, amount = self._mode, self._amount
                if mode == "choke" and sink is link.client:
                    self._state.wait_for(lambda: link.ended or link.delivered < self._bound())
                    mode, amount = self._mode, self._bound() - link.delivered
            size = len(rest)
            if mode == "choke" and sink is link.client:
                size = int(min(size, max(1, amount)))
                link.delivered += size
            if mode == "slice1":
                size = 1
            elif mode == "throttle":
                size = max(1, int(amount / 50))
            sink.sendall(rest[:size])
            rest = rest[size:]
            if mode == "throttle":
                with self._state:
                    self._state.wait_for(
                        lambda: link.ended or self._mode != "throttle", size / amount
                    )
