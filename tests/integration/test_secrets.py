"""Secrets appear in no error, traceback, log, repr or output of a command."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import io
import logging
import socket
import traceback
import warnings
from urllib.parse import quote

import pytest
import redis
import trustme
from background import background
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import Server
from shell import runner
from tls import TlsServer, certificate

from dtimer import DTimer, DTimerError, RunAt
from dtimer.store.connection.sources import redacted
from dtimer.testing import Catch

#: The secrets that must not be shown anywhere.
USER, PASSWORD, PAYLOAD = "hunter2user", "hunter2pass", "hunter2load"


class ShownTexts:
    """Collects the texts that a program shows, and checks at the end that none has a secret."""

    def __init__(self):
        self._texts = []
        self._stream = io.StringIO()
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s %(exc_text)s"))

    def add(self, what):
        """Add an error with its traceback, or any other object with its repr."""
        self._texts += [str(what), repr(what)]
        if isinstance(what, BaseException):
            self._texts += traceback.format_exception(what)

    def watch(self, timer):
        """Add the timer's repr and the arguments of its emitted events."""
        self._texts += [repr(timer), str(timer)]
        for name in ("error", "disconnected", "connected"):
            timer.on(name, lambda what=None: self.add(what))

    def __enter__(self):
        root = logging.getLogger()
        self._level = root.level
        root.setLevel(logging.DEBUG)
        root.addHandler(self._handler)
        return self

    def __exit__(self, kind, *_):
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._level)
        if kind is None:
            shown = "\n".join([*self._texts, self._stream.getvalue()])
            assert shown.strip(), "no output was collected"
            # Tracebacks show lines of this file, which name the constants and not the secrets.
            assert [] == [line for line in shown.splitlines() if "hunter2" in line]


@pytest.fixture
def shown():
    with ShownTexts() as shown:
        yield shown


def try_everything(shown, make):
    """Call everything that contacts the server, and add each error that is raised."""
    try:
        timer = make()
    except Exception as e:
        shown.add(e)
        return
    shown.watch(timer)
    post = functools.partial(timer.post, {"a": PAYLOAD})
    for call in (timer.join, timer.stats, post, lambda: list(timer.dead())):
        try:
            call()
        except Exception as e:
            shown.add(e)
    shown.add(timer.health())
    timer.leave(0)


class TestCredentials:
    """User and password, with every kind of connection error."""

    @pytest.fixture
    def guarded(self):
        with Server(tcp=True, args=("--requirepass", "another")) as server:
            yield server

    def test_refused_credentials_are_not_shown(self, shown, guarded):
        """The server refuses the credentials."""
        url = guarded.url.replace("redis://", f"redis://{USER}:{PASSWORD}@")
        try_everything(shown, lambda: DTimer("node", url, timeout=900))
        with redis.Redis.from_url(url) as client:
            try_everything(shown, lambda: DTimer("node", client, timeout=900))

    @pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid:6379"])
    def test_an_unreachable_server_shows_no_credentials(self, shown, host):
        """No server listens, or the host name is not found."""
        for scheme in ("redis", "rediss"):
            url = f"{scheme}://{USER}:{PASSWORD}@{host}/0"
            try_everything(shown, lambda url=url: DTimer("node", url, timeout=300))

    @pytest.mark.parametrize(
        "reply",
        [
            b"-ERR unknown command 'AUTH', with args beginning with: '%(all)s' \r\n",
            b"-ERR unknown command `AUTH`, with args beginning with: `%(all)s`, \r\n",
            b"-ERR wrong number of arguments for 'auth' command\r\n",
            b"-NOAUTH Authentication required.\r\n",
            *(b"$-1\r\n", b"what?\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b""),
        ],
    )
    def test_a_reply_that_quotes_the_credentials_is_not_shown(self, shown, reply):
        """Some servers quote the AUTH command in their reply."""
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        line, _ = listener.accept()
                        with line:
                            line.settimeout(5)
                            words = b"' '".join(line.recv(65_536).split(b"\r\n")[4::2])
                            line.sendall(reply.replace(b"%(all)s", words))

            with background(serve):
                url = f"redis://{USER}:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}"
                try_everything(shown, lambda: DTimer("node", url, timeout=300))
                listener.shutdown(socket.SHUT_RDWR)

    @pytest.mark.parametrize(
        "given",
        [
            {"url": f"redis://{USER}:{PASSWORD}@localhost"},
            f"redis://{USER}:{PASSWORD}@localhost".encode(),
            ("localhost", PASSWORD),
            f"{PASSWORD}@localhost:6379",
            f":{PASSWORD}@localhost:6379",
            f"{USER}:{PASSWORD}@localhost:6379",
            f"//{USER}:{PASSWORD}@localhost",
            PASSWORD,
            f"http://{USER}:{PASSWORD}@localhost",
            f"redis://:{PASSWORD}#x@localhost",
            f"redis://:{PASSWORD}/x@localhost",
            f"redis://:{PASSWORD}?x@localhost",
            f"redis://localhost:{PASSWORD}",
            f"redis://localhost?socket_timeout={PASSWORD}",
        ],
        ids=range(14),
    )
    def test_an_invalid_url_is_not_shown(self, shown, given):
        """An argument that is neither a client nor a valid URL may contain a password."""
        try_everything(shown, lambda: DTimer("node", given, timeout=300))

    def test_a_failed_tls_handshake_shows_no_credentials(self, shown):
        """The TLS handshake fails, or the server does not use TLS."""
        with TlsServer(certificate(trustme.CA())) as server:
            for url in (
                server.url(),
                server.url().replace("rediss://", "redis://"),
                server.plain.url.replace("redis://", "rediss://"),
            ):
                known = url.replace("://", f"://{USER}:{PASSWORD}@")
                try_everything(shown, lambda url=known: DTimer("node", url, timeout=300))

    @pytest.mark.parametrize(
        "denied", ["-eval -evalsha", "-zscore -time", "-subscribe", "~other:*"]
    )
    def test_an_acl_refusal_shows_no_password(self, shown, tcp_server, denied):
        """The server names the user whom it refuses. The password is never shown."""
        with tcp_server.client() as admin:
            rules = ["~dtimer:*" if "~" not in denied else "~x", "&*", "+@all", *denied.split()]
            admin.execute_command("ACL", "SETUSER", "known", "reset", "on", f">{PASSWORD}", *rules)
        url = tcp_server.url.replace("redis://", f"redis://known:{PASSWORD}@")
        try_everything(shown, lambda: DTimer("node", url, timeout=900))

    def test_an_unknown_client_is_not_shown(self, shown):
        """A client of an unknown library may have its password in its repr."""

        class Strange:
            connection_pool = redis.ConnectionPool()

            def __repr__(self):
                return f"<Strange password={PASSWORD}>"

        try_everything(shown, lambda: DTimer("node", Strange()))
        try_everything(shown, lambda: RunAt("queue", redis=Strange()).timer)

    @given(st.text(min_size=4, max_size=30).map(lambda text: "hunter2" + text))
    @example("hunter2a/b")
    @example("hunter2a@b")
    @example("hunter2a?b@c")
    @example("hunter2[::1")
    @example("hunter2 ℆")
    @settings(max_examples=80, deadline=None)
    def test_any_password_in_a_url_is_hidden(self, password):
        """A password in a URL is hidden with any characters, escaped or not."""
        urls = [f"redis://{user}:{password}@127.0.0.1:1/0" for user in ("", USER)]
        urls += [f"redis://{password}@127.0.0.1:1", f"redis://127.0.0.1:1?password={password}"]
        urls += [f"redis://:{quote(password, safe='')}@127.0.0.1:1", f"unix://:{password}@/s"]
        with ShownTexts() as shown:
            shown.add("begun")
            for url in urls:
                shown.add(redacted(url))
                try:
                    shown.add(DTimer("node", url))
                except DTimerError as e:
                    shown.add(e)

    def test_commands_do_not_repeat_credentials(
        self, shown, guarded, namespace, monkeypatch, capsys
    ):
        """Neither doctor nor another command repeats credentials, in text or in JSON."""
        run = runner(guarded, namespace, monkeypatch, capsys)
        for url in (
            guarded.url.replace("redis://", f"redis://{USER}:{PASSWORD}@"),
            f"redis://{USER}:{PASSWORD}@127.0.0.1:1",
            f"redis://:{PASSWORD}/x@127.0.0.1:1",
            f"redis://127.0.0.1:1?password={PASSWORD}",
            f"{PASSWORD}@127.0.0.1",
        ):
            commands = [["doctor"], ["doctor", "--json"]]
            if ":1?" not in url and not url.endswith(":1"):
                # Without a server each of these commands would wait for its whole deadline.
                commands += [["stats"], ["health"], ["post", f'{{"a": "{PAYLOAD}"}}', "--json"]]
            for words in commands:
                ran = run(*words, "--url", url)
                assert ran.code != 0
                shown.add(ran)


UNFIT = {
    "a text": PAYLOAD,
    "bytes": PAYLOAD.encode(),
    "a list": [PAYLOAD],
    "a key": {(PAYLOAD,): 1},
    "a value": {"a": PAYLOAD, "b": object()},
    "a set": {"a": {PAYLOAD}},
    "a moment": {"a": PAYLOAD, "b": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)},
    "no number": {"a": PAYLOAD, "b": float("nan")},
    "a bad text": {"a": b"\xff" + PAYLOAD.encode()},
    "too large": {"a": PAYLOAD * 50_000},
}


class TestPayloads:
    """Payloads, with every kind of fault."""

    @pytest.mark.parametrize("payload", UNFIT.values(), ids=UNFIT)
    def test_a_refused_payload_is_not_quoted(self, shown, make, payload):
        """A payload that cannot be posted is refused without being quoted."""
        timer = make()
        for call in (
            lambda: timer.post(payload),
            lambda: timer.post_many([(payload, 0)]),
            lambda: timer.post_many([{"ev": payload}]),
            lambda: timer.post_many([payload]),
            lambda: timer.every(1_000, payload, id="tick"),
        ):
            with pytest.raises(DTimerError) as caught:
                call()
            shown.add(caught.value)
        with RunAt("queue", redis=timer._store.server.source and "redis://127.0.0.1:1") as queue:
            with pytest.raises(DTimerError) as caught:
                queue.write({"wrong": PAYLOAD})
            shown.add(caught.value)

    @pytest.mark.parametrize("body", [b"%s", b",3|%s", b',3|{"a":"%s"', b',3|{"a":"%s","b":\xff}'])
    def test_a_corrupt_payload_is_not_quoted(self, shown, make, client, body):
        """A corrupt record is buried, and the error does not quote it."""
        node = make(poll_interval=50)
        shown.watch(node)
        dead = Catch(node, "dead")
        node.on("event", lambda events: None)
        keys = node._store.keys
        with node:
            client.hset(keys.body, "bad", body.replace(b"%s", PAYLOAD.encode()))
            client.zadd(keys.due, {"bad": 1})
            letter = dead.next()
        shown.add(letter.error)
        shown.add(letter.reason)

    def test_a_payload_is_not_logged(self, shown, make):
        """A payload is not logged, even at level DEBUG and if its handler fails."""
        node = make(max_retries=1, backoff=1)
        shown.watch(node)
        dead = Catch(node, "dead")

        @node.on("event")
        def fail(events):
            raise ValueError("no")

        with warnings.catch_warnings(record=True) as caught, node:
            warnings.simplefilter("always")
            node.post({"a": PAYLOAD})
            letter = dead.next()
        assert 2 == letter.attempt
        for warning in caught:
            shown.add(warning.message)
        shown.add(letter.error)

    def test_commands_do_not_repeat_a_payload(self, shown, run, tmp_path):
        """A payload that cannot be read from an argument or a file is not repeated."""
        file = tmp_path / "lines"
        for text in (f'"{PAYLOAD}"', f'{{"a": "{PAYLOAD}"', f"[{PAYLOAD}]"):
            ran = run("post", text)
            assert 2 == ran.code
            shown.add(ran)
            file.write_text('{"kind":"dead","id":"a","died":1,"attempt":1,"reason":"x","event":')
            with file.open("a") as stream:
                stream.write(text + ',"max_retries":1}\n')
            ran = run("import", file)
            assert 0 != ran.code
            shown.add(ran)


def test_a_url_is_shown_without_its_secrets():
    """A valid URL is shown as the place to which it leads."""
    assert "redis://…@host:6379/0" == redacted("redis://user:pass@host:6379/0?password=x")
    assert "redis://host" == redacted("redis://host")
    assert "unix:///run/redis.sock" == redacted("unix:///run/redis.sock?db=1")
    assert "embedded:///a/folder" == redacted("embedded:///a/folder")
    assert "the server" == redacted("redis://host?a=b@c")
