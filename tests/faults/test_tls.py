"""F17: TLS that is right, and TLS that fails: the cause is named, and nothing goes in the clear."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time

import pytest
import redis
import trustme
from chaos.settings import CONNECTS_ONCE, CONNECTS_PER_SECOND, PATIENT
from leftovers import nothing_left
from servers import LONGEST_CALL, PATIENCE, PROMPT, Running, eventually
from tls import ADDRESS, TlsServer, certificate

from dtimer import DTimer, OutcomeUnknown, StoreError
from dtimer.store.tls import PLAIN, SILENT, verified
from dtimer.testing import Catch

pytestmark = pytest.mark.fault("F17")

#: The pause after an error that needs a person, in seconds; five in truth.
SLOW = 1.0


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority, tmp_path_factory):
    """The path of the authority's own certificate."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def server(authority):
    """A server whose certificate is right; nothing is left on it in the end."""
    with (
        TlsServer(certificate(authority)) as server,
        server.plain.client() as client,
        nothing_left(client),
    ):
        yield server


@pytest.fixture
def make():
    """Makes timers, which have left in the end."""
    made = []

    def build(url, **options):
        timer = DTimer("node", url, **PATIENT | options)
        made.append(timer)
        return timer

    yield build
    for timer in made:
        timer.leave(0)


class TestRight:
    """Where the certificate is right all is as without TLS."""

    def test_commands_and_wakes(self, server, trusted, make):
        """Commands and the subscription go through it, and the subscription stays."""
        # No poll would be in time: what comes, comes by a wake.
        node = make(server.url(ssl_ca_certs=trusted), poll_interval=30_000)
        caught, errors = Catch(node, "event"), Catch(node, "error")
        with node:
            eventually(lambda: node.health().ok)
            for n in range(20):
                node.post({"n": n}, 1)
                assert {"n": n} == caught.next()[0]
            assert node.health().ok
        assert [] == [repr(e) for e in rest(errors)]

    def test_a_client_of_ones_own(self, server, trusted, make):
        """A client's settings of TLS are taken over, also for the subscription."""
        _, port = server.url().removeprefix("rediss://").split("/")[0].split(":")
        with redis.Redis(host=ADDRESS, port=int(port), ssl=True, ssl_ca_certs=trusted) as client:
            node = make(client)
            caught = Catch(node, "event")
            with node:
                eventually(lambda: node.health().ok)
                node.post({"n": 1})
                assert {"n": 1} == caught.next()[0]

    def test_large_payloads(self, server, trusted, make):
        """What takes many records of TLS arrives whole."""
        node = make(server.url(ssl_ca_certs=trusted))
        caught = Catch(node, "event")
        with node:
            node.post({"much": "x" * 200_000})
            assert {"much": "x" * 200_000} == caught.next()[0]

    def test_unverified_on_request_alone(self, server, make):
        """Who asks for it gets TLS without trust; who does not, does not."""
        node = make(server.url(ssl_cert_reqs="none"))
        assert node.post({})


WRONG = {
    "unknown authority": ("unable to get local issuer", lambda ca: certificate(trustme.CA())),
    "another name": ("not valid for '127.0.0.1'", lambda ca: certificate(ca, "other.example")),
    "expired": ("has expired", lambda ca: certificate(ca, expired=True)),
}


@pytest.fixture(params=WRONG.values(), ids=WRONG)
def wrong(request, server, authority):
    """Have the server show a certificate that is wrong; returns how that is told."""
    told, make = request.param
    server.present(make(authority))
    return told


class TestWrong:
    """A certificate that may not be trusted is refused, at once and in words."""

    def test_a_call(self, server, trusted, make, wrong):
        """A call raises at once what OpenSSL minds, and says that nothing was done."""
        timer = make(server.url(ssl_ca_certs=trusted), timeout=LONGEST_CALL)
        began = time.monotonic()
        with pytest.raises(StoreError, match=wrong) as caught:
            timer.post({})
        assert time.monotonic() - began < PROMPT
        assert not isinstance(caught.value, OutcomeUnknown)
        assert "trusted connection" in str(caught.value)
        with pytest.raises(StoreError, match=wrong):
            timer.join()

    def test_a_client_that_trusts_nobody(self, server, make):
        """Without the authority's certificate a server of its own is not trusted."""
        with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
            make(server.url()).post({})

    def test_a_joined_node(self, server, trusted, authority, make, monkeypatch):
        """
        A node whose server shows a wrong certificate says so once, is not well, hammers
        nobody, and goes on by itself when it is mended.
        """
        for module in ("reach", "listener"):
            monkeypatch.setattr(f"dtimer.engine.{module}._SLOW_PAUSE", SLOW)
        node = make(server.url(ssl_ca_certs=trusted))
        caught, errors = Catch(node, "event"), Catch(node, "error")
        node.join()
        eventually(lambda: node.health().ok)
        server.present(certificate(authority, expired=True))
        before = server.accepted
        began = time.monotonic()
        kill(server.plain)
        first = errors.next()
        assert "has expired" in str(first)
        health = node.health()
        assert not health.ok
        eventually(lambda: "has expired" in (node.health().error or ""))
        tried = server.accepted - before
        assert tried <= CONNECTS_ONCE + CONNECTS_PER_SECOND * (time.monotonic() - began)
        server.present(certificate(authority))
        eventually(lambda: node.health().ok)
        took = time.monotonic() - began
        assert took <= SLOW + PROMPT
        # Two threads, each with a pause of a second; a healthy one, then, and one more.
        assert server.accepted - before <= CONNECTS_ONCE + 2 * took / SLOW
        node.post({"n": 1})
        assert {"n": 1} == caught.next()[0]
        # Wakes may have gone a moment before the rest: two things, each said once.
        told = [str(e).partition(":")[0] for e in [first, *rest(errors)]]
        assert len(told) == len(set(told)) <= 2


def kill(server: Running):
    """End all connections of clients."""
    with server.client() as client:
        client.client_kill_filter(_type="pubsub")
        client.client_kill_filter(_type="normal", skipme=True)


class TestMismatch:
    """One side speaks TLS and the other does not."""

    def test_plaintext_to_tls(self, server, make):
        """A server of TLS hangs up, and the error tells what may be the matter."""
        timer = make(server.url().replace("rediss://", "redis://"))
        with within(timer), pytest.raises(StoreError) as caught:
            timer.post({})
        assert PLAIN in str(caught.value)

    def test_tls_to_plaintext(self, server, trusted, make):
        """A server without TLS does not answer, and the error tells what may be the matter."""
        url = server.plain.url.replace("redis://", "rediss://")
        timer = make(f"{url}?ssl_ca_certs={trusted}")
        with within(timer), pytest.raises(StoreError) as caught:
            timer.post({})
        assert SILENT in str(caught.value)

    @pytest.mark.parametrize("says", [b"-ERR what\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
    def test_nothing_is_sent_in_the_clear(self, make, says):
        """
        To a server that answers a handshake with something else, or hangs up, not a byte goes
        that is not TLS: neither password nor payload.
        """
        heard = []
        with socket.create_server((ADDRESS, 0)) as door:

            def listen():
                with contextlib.suppress(OSError):
                    while True:
                        line, _ = door.accept()
                        with line:
                            line.settimeout(PATIENCE)
                            heard.append(line.recv(65_536))
                            line.sendall(says)
                            line.shutdown(socket.SHUT_WR)
                            while more := line.recv(65_536):
                                heard.append(more)

            thread = threading.Thread(target=listen)
            thread.start()
            timer = make(f"rediss://user:hunter2@{ADDRESS}:{door.getsockname()[1]}")
            with within(timer), pytest.raises(StoreError) as caught:
                timer.post({"secret": "payload"})
            door.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        said = b"".join(heard)
        assert said.startswith(b"\x16\x03")  # a handshake
        for secret in (b"hunter2", b"user", b"AUTH", b"EVAL", b"payload"):
            assert secret not in said
        assert "hunter2" not in str(caught.value)


@contextlib.contextmanager
def within(timer):
    """What is called inside ends by the deadline of *timer*, machine permitting."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PATIENT["timeout"] / 1000 + PROMPT


def test_names_are_verified_with_every_library():
    """
    redis-py before 6 checks no name unless it is asked to: for a URL of ours it is, where
    nobody has asked for less.
    """
    assert {"ssl_check_hostname": True} == verified({})
    assert {"ssl_check_hostname": False} == verified({"ssl_check_hostname": False})
    for nobody in ("none", ssl.CERT_NONE):
        assert {"ssl_cert_reqs": nobody} == verified({"ssl_cert_reqs": nobody})


def rest(caught):
    """What was caught and not taken."""
    while not caught.empty():
        yield caught.next()
