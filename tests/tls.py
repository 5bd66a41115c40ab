"""
A server that speaks TLS, with a certificate that the test chooses and can change.

If the server of the tests was built with TLS, it speaks TLS itself; ``DTIMER_TEST_SERVER`` may name
such a server. Otherwise Python's TLS runs in front of it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any, Self

import trustme
from servers import Running, Server, server_binary

#: The address of the server, and the name in a valid certificate.
ADDRESS = "127.0.0.1"


def certificate(
    authority: trustme.CA, name: str = ADDRESS, *, expired: bool = False
) -> trustme.LeafCert:
    """Return a certificate by *authority* for a server of this name."""
    until = dt.datetime(2020, 1, 1, tzinfo=dt.UTC) if expired else None
    since = dt.datetime(2019, 1, 1, tzinfo=dt.UTC)
    return authority.issue_cert(name, not_before=since, not_after=until)


def _files(folder: Path, leaf: trustme.LeafCert) -> tuple[str, str]:
    key, chain = folder / "key.pem", folder / "chain.pem"
    leaf.private_key_pem.write_to_path(key)
    chain.unlink(missing_ok=True)
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    return str(key), str(chain)


@functools.cache
def can_speak_tls() -> bool:
    """Return True if the server of the tests was built with TLS."""
    wrong = [server_binary(), "--port", "0", "--tls-port", "1", "--tls-cert-file", "/"]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=30, check=False)
    return "TLS support" not in done.stdout and "Bad directive" not in done.stderr


class Native:
    """A server that speaks TLS itself."""

    def __init__(self, leaf: trustme.LeafCert) -> None:
        self._folder = Server(tcp=True).folder
        key, chain = _files(self._folder, leaf)
        with socket.create_server((ADDRESS, 0)) as probe:
            self.port = probe.getsockname()[1]
        self._server = Server(
            tcp=True,
            args=[
                *("--tls-port", str(self.port), "--tls-cert-file", chain, "--tls-key-file", key),
                *("--tls-auth-clients", "no", "--tls-ca-cert-file", chain),
            ],
        )
        self._server.start()
        self.plain: Running = self._server

    def present(self, leaf: trustme.LeafCert) -> None:
        """Show another certificate from now on."""
        key, chain = _files(self._folder, leaf)
        with self.plain.client() as client:
            client.execute_command("CONFIG", "SET", "tls-key-file", key, "tls-cert-file", chain)

    @property
    def accepted(self) -> int:
        with self.plain.client() as client:
            return int(client.info("stats")["total_connections_received"])

    def close(self) -> None:
        self._server.close()


class Front:
    """TLS in front of a server without it, with two threads a connection."""

    def __init__(self, leaf: trustme.LeafCert) -> None:
        self._server = Server(tcp=True)
        self._server.start()
        self.plain: Running = self._server
        self.accepted = 0
        self.present(leaf)
        self._socket = socket.create_server((ADDRESS, 0))
        self.port = self._socket.getsockname()[1]
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def present(self, leaf: trustme.LeafCert) -> None:
        """Show another certificate from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        self._context = context

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._socket.accept()
                self.accepted += 1
                thread = threading.Thread(target=self._serve, args=(line,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, line: socket.socket) -> None:
        try:
            line.settimeout(10)
            tls = self._context.wrap_socket(line, server_side=True)
        except OSError:
            # The client does not speak TLS, or refuses the certificate.
            line.close()
            return
        tls.settimeout(None)
        server = socket.create_connection((ADDRESS, self._server.port))
        with self._lock:
            self._ends |= {tls, server}
        # Two threads may share a TLS socket here: one only reads, the other only writes, and
        # Python locks the OpenSSL object.
        back = threading.Thread(target=self._copy, args=(server, tls), daemon=True)
        back.start()
        self._copy(tls, server)
        back.join()
        with self._lock:
            self._ends -= {tls, server}
        for end in (tls, server):
            end.close()

    @staticmethod
    def _copy(source: Any, sink: Any) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all sockets, and wait for the threads to end."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._server.close()


class TlsServer:
    """
    A server with TLS. A context manager.

    ``plain`` is the same server without TLS; ``url`` returns the URL with TLS.
    """

    def __init__(self, leaf: trustme.LeafCert) -> None:
        self._side: Native | Front = (Native if can_speak_tls() else Front)(leaf)
        self.plain = self._side.plain
        self.present = self._side.present

    def url(self, **query: str) -> str:
        """Return the URL, with these settings of redis-py."""
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        return f"rediss://{ADDRESS}:{self._side.port}/0?{asked}"

    @property
    def accepted(self) -> int:
        """The number of connections so far, including those whose handshake failed."""
        return self._side.accepted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._side.close()
