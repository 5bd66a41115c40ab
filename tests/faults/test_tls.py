"""Fault F17: TLS fails. The error names the cause, and no byte is sent unencrypted."""

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
from servers import LONGEST_CALL, PATIENCE, PROMPT, close_connections, eventually
from tls import ADDRESS, TlsServer, certificate

from dtimer import DTimer, StoreError
from dtimer.store.connection.tls import PLAIN, SILENT, verified
from dtimer.testing import Catch
from faults.calls import definite_failure

pytestmark = pytest.mark.fault("F17")

#: The pause after an error that only a person can correct, in seconds. The library's is 5.
SLOW = 1.0


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def authority_path(authority, tmp_path_factory):
    """The path of the certificate of the authority."""
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def server(authority):
    """A server with a valid certificate. At the end it must hold no data."""
    with (
        TlsServer(certificate(authority)) as server,
        server.plain.client() as client,
        nothing_left(client),
    ):
        yield server


@pytest.fixture
def make_timer():
    """A function that makes timers. They leave at the end of the test."""
    timers = []

    def make(url, **options):
        # TLS handshakes are slow on a busy machine.
        timers.append(DTimer("node", url, **PATIENT | {"timeout": LONGEST_CALL} | options))
        return timers[-1]

    yield make
    for timer in timers:
        timer.leave(0)


class TestValidCertificate:
    """With a valid certificate a node works as without TLS."""

    def test_commands_and_the_subscription_use_tls(self, server, authority_path, make_timer):
        """The subscription must stay open: without wakes every event would wait for a poll."""
        # A poll would be too late for this test, so each event arrives by a wake.
        node = make_timer(server.url(ssl_ca_certs=authority_path), poll_interval=30_000)
        caught, errors = Catch(node, "event"), Catch(node, "error")
        with node:
            eventually(lambda: node.health().ok)
            for n in range(20):
                node.post({"n": n}, 1)
                assert {"n": n} == caught.next()[0]
            assert node.health().ok
        assert [] == [repr(e) for e in remaining(errors)]

    def test_the_tls_settings_of_a_users_client_are_copied(
        self, server, authority_path, make_timer
    ):
        """Both for commands and for the subscription."""
        _, port = server.url().removeprefix("rediss://").split("/")[0].split(":")
        with redis.Redis(
            host=ADDRESS, port=int(port), ssl=True, ssl_ca_certs=authority_path
        ) as client:
            node = make_timer(client)
            caught = Catch(node, "event")
            with node:
                eventually(lambda: node.health().ok)
                node.post({"n": 1})
                assert {"n": 1} == caught.next()[0]

    def test_a_payload_of_many_tls_records_arrives_whole(self, server, authority_path, make_timer):
        """A read that returns after the first record would cut the payload."""
        node = make_timer(server.url(ssl_ca_certs=authority_path))
        caught = Catch(node, "event")
        with node:
            node.post({"much": "x" * 200_000})
            assert {"much": "x" * 200_000} == caught.next()[0]

    def test_ssl_cert_reqs_none_accepts_any_certificate(self, server, make_timer):
        """A user may ask for encryption without verification."""
        node = make_timer(server.url(ssl_cert_reqs="none"))
        assert node.post({})


WRONG = {
    "unknown authority": ("unable to get local issuer", lambda ca: certificate(trustme.CA())),
    "another name": ("not valid for '127.0.0.1'", lambda ca: certificate(ca, "other.example")),
    "expired": ("has expired", lambda ca: certificate(ca, expired=True)),
}


@pytest.fixture(params=WRONG.values(), ids=WRONG)
def words_of_openssl(request, server, authority):
    """Present a certificate that is wrong, and return the words of OpenSSL for it."""
    words, issue = request.param
    server.present(issue(authority))
    return words


class TestInvalidCertificate:
    """A certificate that cannot be trusted is rejected at once, with its cause."""

    def test_a_call_raises_the_words_of_openssl_at_once(
        self, server, authority_path, make_timer, words_of_openssl
    ):
        """Trying again cannot help, and the call has definitely not been executed."""
        timer = make_timer(server.url(ssl_ca_certs=authority_path), timeout=LONGEST_CALL)
        began = time.monotonic()
        with definite_failure(words_of_openssl) as caught:
            timer.post({})
        assert time.monotonic() - began < PROMPT
        assert "trusted connection" in str(caught.value)
        with pytest.raises(StoreError, match=words_of_openssl):
            timer.join()

    def test_a_private_authority_is_not_trusted_by_default(self, server, make_timer):
        """A URL without ``ssl_ca_certs`` trusts only the authorities of the system."""
        with pytest.raises(StoreError, match="CERTIFICATE_VERIFY_FAILED"):
            make_timer(server.url()).post({})

    def test_a_joined_node_recovers_when_the_certificate_is_valid_again(
        self, server, authority_path, authority, make_timer, monkeypatch
    ):
        """Meanwhile it reports the certificate once, and connects about once a second."""
        for module in ("connectivity", "listener"):
            monkeypatch.setattr(f"dtimer.engine.{module}._SLOW_PAUSE", SLOW)
        node = make_timer(server.url(ssl_ca_certs=authority_path))
        caught, errors = Catch(node, "event"), Catch(node, "error")
        node.join()
        eventually(lambda: node.health().ok)
        server.present(certificate(authority, expired=True))
        before = server.accepted
        began = time.monotonic()
        with server.plain.client() as client:
            close_connections(client)
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
        # Two threads connect, each with a pause of a second. CONNECTS_ONCE allows for the first
        # tries, which follow each other faster, and for the connections after the recovery.
        assert server.accepted - before <= CONNECTS_ONCE + 2 * took / SLOW
        node.post({"n": 1})
        assert {"n": 1} == caught.next()[0]
        # The subscription and the commands may fail for different reasons: two errors, each once.
        # The same error has the same text before its first colon.
        beginnings = [str(e).partition(":")[0] for e in [first, *remaining(errors)]]
        assert len(beginnings) == len(set(beginnings)) <= 2


class TestTlsOnOneSide:
    """Only one side uses TLS."""

    def test_the_error_suggests_a_server_that_expects_tls(self, server, make_timer):
        """Such a server closes a plain connection without a reply."""
        timer = make_timer(
            server.url().replace("rediss://", "redis://"), timeout=PATIENT["timeout"]
        )
        with ends_in_time(timer), pytest.raises(StoreError) as caught:
            timer.post({})
        assert PLAIN in str(caught.value)

    def test_the_error_suggests_a_server_without_tls(self, server, authority_path, make_timer):
        """Such a server does not reply to the handshake."""
        url = server.plain.url.replace("redis://", "rediss://")
        timer = make_timer(f"{url}?ssl_ca_certs={authority_path}", timeout=PATIENT["timeout"])
        with ends_in_time(timer), pytest.raises(StoreError) as caught:
            timer.post({})
        assert SILENT in str(caught.value)

    @pytest.mark.parametrize("says", [b"-ERR what\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
    def test_nothing_is_sent_unencrypted(self, make_timer, says):
        """Dtimer must not answer plain text with plain text: it would reveal the password."""
        received = []
        with socket.create_server((ADDRESS, 0)) as listening:

            def listen():
                with contextlib.suppress(OSError):
                    while True:
                        accepted, _ = listening.accept()
                        with accepted:
                            accepted.settimeout(PATIENCE)
                            received.append(accepted.recv(65_536))
                            accepted.sendall(says)
                            accepted.shutdown(socket.SHUT_WR)
                            while more := accepted.recv(65_536):
                                received.append(more)

            thread = threading.Thread(target=listen)
            thread.start()
            url = f"rediss://user:hunter2@{ADDRESS}:{listening.getsockname()[1]}"
            timer = make_timer(url, timeout=PATIENT["timeout"])
            with ends_in_time(timer), pytest.raises(StoreError) as caught:
                timer.post({"secret": "payload"})
            listening.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
        received_bytes = b"".join(received)
        assert received_bytes.startswith(b"\x16\x03")  # a handshake
        for secret in (b"hunter2", b"user", b"AUTH", b"EVAL", b"payload"):
            assert secret not in received_bytes
        assert "hunter2" not in str(caught.value)


@contextlib.contextmanager
def ends_in_time(timer):
    """Check that the block ends by the deadline of *timer*, with a margin for a busy machine."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PATIENT["timeout"] / 1000 + PROMPT


def test_host_names_are_verified_unless_the_user_turns_it_off():
    """redis-py before 6 does not check the name in a certificate by default. dtimer asks for it."""
    assert {"ssl_check_hostname": True} == verified({})
    assert {"ssl_check_hostname": False} == verified({"ssl_check_hostname": False})
    for unverified in ("none", ssl.CERT_NONE):
        assert {"ssl_cert_reqs": unverified} == verified({"ssl_cert_reqs": unverified})


def remaining(caught):
    """Yield the caught errors that no test has taken."""
    while not caught.empty():
        yield caught.next()
