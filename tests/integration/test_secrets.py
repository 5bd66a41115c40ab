"""No secret is told: not in an error, a traceback, a log, a repr, or a command's output."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import logging
import socket
import threading
import traceback
import warnings
from urllib.parse import quote

import pytest
import redis
import trustme
from hypothesis import example, given, settings
from hypothesis import strategies as st
from servers import Server, eventually
from shell import runner
from tls import TlsServer, certificate

from dtimer import DTimer, DTimerError, RunAt
from dtimer.store.connect import where

#: What must not be found anywhere, and what stands in for each in a URL.
USER, PASSWORD, PAYLOAD = "hunter2user", "hunter2pass", "hunter2load"


class Told:
    """Everything that was said by anybody, in any way."""

    def __init__(self):
        self._texts = []
        self._stream = io.StringIO()
        self._handler = logging.StreamHandler(self._stream)
        self._handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s %(exc_text)s"))

    def add(self, what):
        """Add an error with all that Python tells of it, or anything with its repr."""
        self._texts += [str(what), repr(what)]
        if isinstance(what, BaseException):
            self._texts += traceback.format_exception(what)

    def watch(self, timer):
        """Add what a timer is, and whatever it emits."""
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
            said = "\n".join([*self._texts, self._stream.getvalue()])
            assert said.strip(), "nothing was said at all"
            # Our own program stands in tracebacks, by the lines of this file.
            lines = [line for line in said.splitlines() if "hunter2" in line]
            assert [] == lines


@pytest.fixture
def told():
    with Told() as told:
        yield told


def tried(told, make):
    """Do all that meets the server; whatever it raises is told."""
    timer = None
    try:
        timer = make()
    except Exception as e:
        told.add(e)
        return
    told.watch(timer)
    for call in (
        timer.join,
        timer.stats,
        lambda: timer.post({"a": PAYLOAD}),
        lambda: list(timer.dead()),
    ):
        try:
            call()
        except Exception as e:
            told.add(e)
    told.add(timer.health())
    timer.leave(0)


class TestCredentials:
    """User and password, in whatever goes wrong with them."""

    @pytest.fixture
    def guarded(self):
        with Server(tcp=True, args=("--requirepass", "another")) as server:
            yield server

    def test_refused(self, told, guarded):
        """The server does not know them."""
        url = guarded.url.replace("redis://", f"redis://{USER}:{PASSWORD}@")
        tried(told, lambda: DTimer("node", url, timeout=900))
        with redis.Redis.from_url(url) as client:
            tried(told, lambda: DTimer("node", client, timeout=900))

    @pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid:6379"])
    def test_nobody_there(self, told, host):
        """Nobody answers, or the name is not found."""
        for scheme in ("redis", "rediss"):
            url = f"{scheme}://{USER}:{PASSWORD}@{host}/0"
            tried(told, lambda url=url: DTimer("node", url, timeout=300))

    @pytest.mark.parametrize(
        "says",
        [
            b"-ERR unknown command 'AUTH', with args beginning with: '%(all)s' \r\n",
            b"-ERR unknown command `AUTH`, with args beginning with: `%(all)s`, \r\n",
            b"-ERR wrong number of arguments for 'auth' command\r\n",
            b"-NOAUTH Authentication required.\r\n",
            b"$-1\r\n",
            b"what?\r\n",
            b"\x15\x03\x01\x00\x02\x02\x46",
            b"",
        ],
    )
    def test_a_strange_server(self, told, says):
        """Whatever answers the AUTH: some servers quote it."""
        with socket.create_server(("127.0.0.1", 0)) as door:

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        line, _ = door.accept()
                        with line:
                            line.settimeout(5)
                            asked = line.recv(65_536)
                            words = b"' '".join(asked.split(b"\r\n")[4::2])
                            line.sendall(says.replace(b"%(all)s", words))

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"redis://{USER}:{PASSWORD}@127.0.0.1:{door.getsockname()[1]}"
            tried(told, lambda: DTimer("node", url, timeout=300))
            door.shutdown(socket.SHUT_RDWR)
        thread.join(10)

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
    def test_no_url(self, told, given):
        """What is no client and no URL, and may well hold a password, is not shown."""
        tried(told, lambda: DTimer("node", given, timeout=300))

    def test_a_certificate_that_is_not_trusted(self, told):
        """A handshake that fails, and a server that speaks no TLS at all."""
        with TlsServer(certificate(trustme.CA())) as server:
            for url in (
                server.url(),
                server.url().replace("rediss://", "redis://"),
                server.plain.url.replace("redis://", "rediss://"),
            ):
                known = url.replace("://", f"://{USER}:{PASSWORD}@")
                tried(told, lambda url=known: DTimer("node", url, timeout=300))

    @pytest.mark.parametrize(
        "denied", ["-eval -evalsha", "-zscore -time", "-subscribe", "~other:*"]
    )
    def test_what_an_acl_refuses(self, told, tcp_server, denied):
        """The server itself names the user whom it refuses; the password nobody does."""
        with tcp_server.client() as admin:
            rules = ["~dtimer:*" if "~" not in denied else "~x", "&*", "+@all", *denied.split()]
            admin.execute_command("ACL", "SETUSER", "known", "reset", "on", f">{PASSWORD}", *rules)
        url = tcp_server.url.replace("redis://", f"redis://known:{PASSWORD}@")
        tried(told, lambda: DTimer("node", url, timeout=900))

    def test_a_client_of_another_kind(self, told):
        """An object with a pool, of a library that is not known, is not shown."""

        class Strange:
            connection_pool = redis.ConnectionPool()

            def __repr__(self):
                return f"<Strange password={PASSWORD}>"

        tried(told, lambda: DTimer("node", Strange()))
        tried(told, lambda: RunAt("queue", redis=Strange()).timer)

    @given(st.text(min_size=4, max_size=30).map(lambda text: "hunter2" + text))
    @example("hunter2a/b")
    @example("hunter2a@b")
    @example("hunter2a?b@c")
    @example("hunter2[::1")
    @example("hunter2 ℆")
    @settings(max_examples=80, deadline=None)
    def test_any_password_in_a_url(self, password):
        """However it is written, escaped or not, nothing of it is shown."""
        urls = [f"redis://{user}:{password}@127.0.0.1:1/0" for user in ("", USER)]
        urls += [f"redis://{password}@127.0.0.1:1", f"redis://127.0.0.1:1?password={password}"]
        urls += [f"redis://:{quote(password, safe='')}@127.0.0.1:1", f"unix://:{password}@/s"]
        with Told() as told:
            told.add("begun")
            for url in urls:
                told.add(where(url))
                try:
                    told.add(DTimer("node", url))
                except DTimerError as e:
                    told.add(e)

    def test_the_command_line(self, told, guarded, namespace, monkeypatch, capsys):
        """Neither doctor nor any other command repeats them, in words or in JSON."""
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
                # Where nobody is, each of these would wait for its whole deadline.
                commands += [["stats"], ["health"], ["post", f'{{"a": "{PAYLOAD}"}}', "--json"]]
            for words in commands:
                ran = run(*words, "--url", url)
                assert ran.code != 0
                told.add(ran)


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
    """Payloads, whatever is wrong with them."""

    @pytest.mark.parametrize("payload", UNFIT.values(), ids=UNFIT)
    def test_unfit(self, told, make, payload):
        """What cannot be posted is refused without being quoted."""
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
            told.add(caught.value)
        with RunAt("queue", redis=timer._store._source and "redis://127.0.0.1:1") as queue:
            with pytest.raises(DTimerError) as caught:
                queue.write({"wrong": PAYLOAD})
            told.add(caught.value)

    @pytest.mark.parametrize("body", [b"%s", b",3|%s", b',3|{"a":"%s"', b',3|{"a":"%s","b":\xff}'])
    def test_corrupt(self, told, make, client, namespace, body):
        """What somebody else has stored is told of, and not quoted, when it is given up."""
        node = make(poll_interval=50)
        told.watch(node)
        dead = []
        node.on("dead", dead.append)
        node.on("event", lambda events: None)
        keys = node._store.keys
        with node:
            client.hset(keys.body, "bad", body.replace(b"%s", PAYLOAD.encode()))
            client.zadd(keys.due, {"bad": 1})
            eventually(lambda: dead)
        told.add(dead[0].error)
        told.add(dead[0].reason)

    def test_what_goes_well(self, told, make):
        """Not even at the level DEBUG is a payload logged, or an event that fails by itself."""
        node = make(max_retries=1, backoff=1)
        told.watch(node)
        seen = []

        @node.on("event")
        def fail(events):
            seen.append(events[0].attempt)
            raise ValueError("no")

        with warnings.catch_warnings(record=True) as warned, node:
            warnings.simplefilter("always")
            id = node.post({"a": PAYLOAD})
            eventually(lambda: 2 in seen and node.peek(id).state.value == "dead")
        for warning in warned:
            told.add(warning.message)
        told.add(next(iter(node.dead())).error)

    @pytest.fixture
    def run(self, server, namespace, monkeypatch, capsys):
        return runner(server, namespace, monkeypatch, capsys)

    def test_the_command_line(self, told, run, tmp_path):
        """A payload that cannot be read from an argument, or a file, is not repeated."""
        file = tmp_path / "lines"
        for text in (f'"{PAYLOAD}"', f'{{"a": "{PAYLOAD}"', f"[{PAYLOAD}]"):
            ran = run("post", text)
            assert 2 == ran.code
            told.add(ran)
            file.write_text('{"kind":"dead","id":"a","died":1,"attempt":1,"reason":"x","event":')
            with file.open("a") as stream:
                stream.write(text + ',"max_retries":1}\n')
            ran = run("import", file)
            assert 0 != ran.code
            told.add(ran)


def test_where():
    """What is shown of a URL that is right is where it leads."""
    assert "redis://…@host:6379/0" == where("redis://user:pass@host:6379/0?password=x")
    assert "redis://host" == where("redis://host")
    assert "unix:///run/redis.sock" == where("unix:///run/redis.sock?db=1")
    assert "embedded:///a/folder" == where("embedded:///a/folder")
    assert "the server" == where("redis://host?a=b@c")
