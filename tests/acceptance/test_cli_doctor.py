"""``dtimer doctor``: each thing that can be wrong is found, and what to do about it is said."""

from __future__ import annotations

import json

import pytest
from servers import Server
from shell import Terminal, environment, runner

from dtimer.cli.doctor import server as by_info
from dtimer.cli.doctor.findings import Level

pytestmark = pytest.mark.acceptance


@pytest.fixture
def run(server, namespace, monkeypatch, capsys):
    return runner(server, namespace, monkeypatch, capsys)


@pytest.fixture
def examined(run):
    """Examine a server; return the exit code, and level and remedy of each check."""

    def examine(*words):
        ran = run("doctor", "--json", *words)
        return ran.code, {f["check"]: f for f in ran.objects}

    return examine


class TestServers:
    """Real servers, well and unwell."""

    def test_all_is_well(self, examined):
        """A server with an append-only file: nothing to complain of, exit code 0."""
        with Server(appendonly=True, args=["--appendfsync", "everysec"]) as server:
            code, found = examined("--url", server.url)
        assert (0, {"ok"}) == (code, {f["level"] for f in found.values()})
        assert {
            *("connection", "version", "role", "persistence", "eviction"),
            *("pub/sub", "schema", "permissions", "clock", "orphans"),
        } == set(found)

    def test_no_persistence_and_eviction(self, examined):
        """No persistence is a warning; an evicting server with a limit an error, exit code 3."""
        args = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
        with Server(args=args) as server:
            code, found = examined("--url", server.url)
        assert 3 == code
        assert ("warning", "error") == (found["persistence"]["level"], found["eviction"]["level"])
        assert "appendonly yes" in found["persistence"]["remedy"]
        assert "noeviction" in found["eviction"]["remedy"]

    def test_warnings_alone(self, examined, server):
        """1: there are warnings and no errors. (The server of the tests keeps nothing.)"""
        assert 1 == examined()[0]

    def test_nobody_there(self, examined):
        """3: nobody answers, and that is all that is said; a password is not repeated."""
        code, found = examined("--url", "redis://me:secret@127.0.0.1:1")
        assert (3, {"connection"}) == (code, set(found))
        assert "secret" not in json.dumps(found)

    def test_a_wrong_password(self, examined):
        """A server that wants another password is told apart from one that is not there."""
        with Server(tcp=True, args=("--requirepass", "right")) as server:
            url = server.url.replace("redis://", "redis://:wrong@")
            code, found = examined("--url", url)
        assert 3 == code
        assert "refuses this client" in found["connection"]["text"]
        assert "password" in found["connection"]["remedy"]

    def test_a_replica(self, examined, server):
        """A replica is an error that names its master."""
        with Server(tcp=True) as replica:
            with replica.client() as client:
                client.execute_command("REPLICAOF", "127.0.0.1", "1")
            code, found = examined("--url", replica.url)
        assert 3 == code
        assert "127.0.0.1:1" in found["role"]["remedy"]

    def test_a_newer_schema(self, examined, client, namespace):
        """A namespace of a version that this dtimer does not know is an error."""
        client.hset(f"dtimer:{{{namespace}}}:sys", "v", "9")
        code, found = examined()
        assert (3, "error") == (code, found["schema"]["level"])

    def test_orphans(self, examined, client, namespace):
        """An event that is stored and never due is told, with the command that removes it."""
        client.hset(f"dtimer:{{{namespace}}}:body", "ghost", ",3|{}")
        code, found = examined()
        assert (1, "warning") == (code, found["orphans"]["level"])
        assert f"HDEL dtimer:{{{namespace}}}:body ghost" in found["orphans"]["remedy"]
        client.hdel(f"dtimer:{{{namespace}}}:body", "ghost")
        assert "ok" == examined()[1]["orphans"]["level"]

    def test_a_schedule_that_cannot_be_read(self, examined, run, client, namespace):
        """It is named, with the command that ends it; what follows from it is told besides."""
        run("every", "1h", "{}", "--id", "tick")
        run("every", "1h", "{}", "--id", "tock")
        client.hset(f"dtimer:{{{namespace}}}:beats", "tick", "what")
        code, found = examined()
        assert (3, "error") == (code, found["schedules"]["level"])
        assert "'tick'" in found["schedules"]["text"]
        assert 0 == run(*found["schedules"]["remedy"].split()[1:]).code
        assert "schedules" not in examined()[1]


class TestAccess:
    """A user who may not do all that is needed."""

    @pytest.fixture
    def as_user(self, examined, tcp_server):
        """Examine a server as a user with these rules, and what the remedy makes of it."""

        def examine(*rules):
            with tcp_server.client() as admin:
                admin.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">x", *rules)
            return examined("--url", tcp_server.url.replace("redis://", "redis://poor:x@"))

        return examine

    def test_just_what_is_needed(self, as_user, namespace):
        """With the keys and the channels of the namespace alone there is no error."""
        _, found = as_user(
            "+@all", "-@admin", f"~dtimer:{{{namespace}}}:*", f"&dtimer:{{{namespace}}}:*"
        )
        assert [] == [f for f in found.values() if f["level"] == "error"]

    @pytest.mark.parametrize(
        ("denied", "check", "level", "named"),
        [
            ("-zrem", "permissions", "error", "+zrem"),
            ("-zrandmember", "permissions", "error", "+zrandmember"),
            ("-publish", "permissions", "warning", "+publish"),
            ("-subscribe", "pub/sub", "warning", "+subscribe"),
            ("-info", "version", "warning", "+info"),
            ("-evalsha", "schema", "error", "evalsha"),
            ("-ping", "connection", "ok", ""),
        ],
    )
    def test_a_missing_command(self, denied, check, level, named, as_user):
        """The command that may not be run is named, and so is the rule that lets it."""
        _, found = as_user("+@all", "~*", "&*", denied)
        assert level == found[check]["level"]
        assert named in found[check]["remedy"]

    def test_missing_keys(self, as_user, namespace):
        """Where the keys are not allowed, their pattern is told."""
        code, found = as_user("+@all", "~other:*", "&*")
        assert 3 == code
        told = next(f for f in found.values() if f["level"] == "error")
        assert f"~dtimer:{{{namespace}}}:*" in told["remedy"]

    def test_missing_channels(self, as_user, namespace):
        """Where the channels are not allowed, events are late, and their pattern is told."""
        code, found = as_user("+@all", "~*", "resetchannels")
        assert 1 == code
        assert f"&dtimer:{{{namespace}}}:*" in found["pub/sub"]["remedy"]


class TestByInfo:
    """What is judged by INFO alone."""

    @pytest.mark.parametrize(
        ("version", "level"),
        [("6.0.20", Level.ERROR), ("6.2.0", Level.OK), ("10.0.0", Level.OK), ("?", Level.WARNING)],
    )
    def test_version(self, version, level):
        """6.2 is the oldest that will do."""
        assert level is by_info.version({"redis_version": version}).level

    @pytest.mark.parametrize(
        ("info", "settings", "level"),
        [
            ({"aof_enabled": "1"}, {"appendfsync": "always"}, Level.OK),
            ({"aof_enabled": "1"}, {}, Level.OK),
            ({"aof_enabled": "1"}, {"appendfsync": "no"}, Level.WARNING),
            ({"aof_enabled": "1", "aof_last_write_status": "err"}, {}, Level.ERROR),
            ({"aof_enabled": "0"}, {"save": "3600 1"}, Level.WARNING),
            ({"aof_enabled": "0", "rdb_last_bgsave_status": "err"}, {}, Level.ERROR),
            ({}, {}, Level.WARNING),
        ],
    )
    def test_persistence(self, info, settings, level):
        """Only an append-only file that is synced keeps what was acknowledged."""
        assert [level] == [f.level for f in by_info.persistence(info, settings)]

    @pytest.mark.parametrize(
        ("info", "level"),
        [
            ({"maxmemory_policy": "noeviction"}, Level.OK),
            ({"maxmemory_policy": "allkeys-lru", "maxmemory": "0"}, Level.WARNING),
            ({"maxmemory_policy": "allkeys-lru", "maxmemory": "1"}, Level.ERROR),
            ({"maxmemory_policy": "volatile-lru", "maxmemory": "9", "used_memory": "1"}, Level.OK),
            ({"maxmemory": "100", "used_memory": "95"}, Level.WARNING),
        ],
    )
    def test_memory(self, info, level):
        """Our keys have no expiry, so only the policies that evict any key harm them."""
        assert level is by_info.memory(info).level


@pytest.mark.parametrize("columns", [80, 160])
def test_at_a_terminal(columns, server, namespace):
    """No line is wider than the terminal."""
    with Terminal("doctor", env=environment(server, namespace), columns=columns) as terminal:
        terminal.wait()
    lines = terminal.written.splitlines()
    assert any(line.startswith("warning persistence") for line in lines)
    assert columns >= max(map(len, lines))
