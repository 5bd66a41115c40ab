"""``dtimer doctor``: each fault is found, and its remedy is shown."""

from __future__ import annotations

import json

import pytest
from servers import Server
from shell import Terminal, environment

from dtimer.monitor import server_info as by_info
from dtimer.monitor.findings import Level

pytestmark = pytest.mark.acceptance


@pytest.fixture
def examine_server(run):
    """A function: examine a server; return the exit code, and the findings by check."""

    def examine(*words):
        ran = run("doctor", "--json", *words)
        return ran.code, {f["check"]: f for f in ran.objects}

    return examine


class TestServers:
    """Real servers, with and without faults."""

    def test_a_server_without_faults_is_exit_code_0(self, examine_server):
        """A server with an append-only file has no faults, and the exit code is 0."""
        with Server(appendonly=True, args=["--appendfsync", "everysec"]) as server:
            code, findings = examine_server("--url", server.url)
        assert (0, {"ok"}) == (code, {f["level"] for f in findings.values()})
        assert {
            *("connection", "version", "role", "persistence", "eviction"),
            *("pub/sub", "schema", "permissions", "clock", "orphans"),
        } == set(findings)

    def test_missing_persistence_and_eviction_are_found(self, examine_server):
        """The first is a warning. Eviction is an error: it loses events."""
        args = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
        with Server(args=args) as server:
            code, findings = examine_server("--url", server.url)
        assert 3 == code
        assert ("warning", "error") == (
            findings["persistence"]["level"],
            findings["eviction"]["level"],
        )
        assert "appendonly yes" in findings["persistence"]["remedy"]
        assert "noeviction" in findings["eviction"]["remedy"]

    def test_warnings_alone_are_exit_code_1(self, examine_server, server):
        """With warnings and no errors the exit code is 1. (The test server has no persistence.)"""
        assert 1 == examine_server()[0]

    def test_an_unreachable_server_is_exit_code_3(self, examine_server):
        """This is the only finding, and the password is not shown."""
        code, findings = examine_server("--url", "redis://me:secret@127.0.0.1:1")
        assert (3, {"connection"}) == (code, set(findings))
        assert "secret" not in json.dumps(findings)

    def test_a_wrong_password_is_named(self, examine_server):
        """The remedy differs from that for a server that cannot be reached."""
        with Server(tcp=True, args=("--requirepass", "right")) as server:
            url = server.url.replace("redis://", "redis://:wrong@")
            code, findings = examine_server("--url", url)
        assert 3 == code
        assert "refuses this client" in findings["connection"]["text"]
        assert "password" in findings["connection"]["remedy"]

    def test_a_replica_names_its_master(self, examine_server, server):
        """A replica is an error that names the replica's master."""
        with Server(tcp=True) as replica:
            with replica.client() as client:
                client.execute_command("REPLICAOF", "127.0.0.1", "1")
            code, findings = examine_server("--url", replica.url)
        assert 3 == code
        assert "127.0.0.1:1" in findings["role"]["remedy"]

    def test_a_newer_schema_is_an_error(self, examine_server, client, namespace):
        """A namespace with a schema that this version does not know is an error."""
        client.hset(f"dtimer:{{{namespace}}}:sys", "v", "9")
        code, findings = examine_server()
        assert (3, "error") == (code, findings["schema"]["level"])

    def test_an_event_that_is_never_due_is_found(self, examine_server, client, namespace):
        """The remedy is the command that removes it."""
        client.hset(f"dtimer:{{{namespace}}}:body", "ghost", ",3|{}")
        code, findings = examine_server()
        assert (1, "warning") == (code, findings["orphans"]["level"])
        assert f"HDEL dtimer:{{{namespace}}}:body ghost" in findings["orphans"]["remedy"]
        client.hdel(f"dtimer:{{{namespace}}}:body", "ghost")
        assert "ok" == examine_server()[1]["orphans"]["level"]

    def test_an_unreadable_schedule_is_found(self, examine_server, run, client, namespace):
        """The remedy is the command that ends it. Other findings remain."""
        run("every", "1h", "{}", "--id", "tick")
        run("every", "1h", "{}", "--id", "tock")
        client.hset(f"dtimer:{{{namespace}}}:beats", "tick", "what")
        code, findings = examine_server()
        assert (3, "error") == (code, findings["schedules"]["level"])
        assert "'tick'" in findings["schedules"]["text"]
        assert 0 == run(*findings["schedules"]["remedy"].split()[1:]).code
        assert "schedules" not in examine_server()[1]


class TestAccess:
    """A user without some permission."""

    @pytest.fixture
    def as_user(self, examine_server, tcp_server):
        """Return a function that examines a server as a user with these rules."""

        def examine(*rules):
            with tcp_server.client() as admin:
                admin.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">x", *rules)
            return examine_server("--url", tcp_server.url.replace("redis://", "redis://poor:x@"))

        return examine

    def test_the_needed_permissions_are_sufficient(self, as_user, namespace):
        """The keys and channels of the namespace are sufficient for a report without errors."""
        _, findings = as_user(
            "+@all", "-@admin", f"~dtimer:{{{namespace}}}:*", f"&dtimer:{{{namespace}}}:*"
        )
        assert [] == [f for f in findings.values() if f["level"] == "error"]

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
    def test_a_missing_command_is_named(self, denied, check, level, named, as_user):
        """The remedy names the missing command or the rule that allows it."""
        _, findings = as_user("+@all", "~*", "&*", denied)
        assert level == findings[check]["level"]
        assert named in findings[check]["remedy"]

    def test_missing_keys_are_named(self, as_user, namespace):
        """If the keys are not allowed, the remedy has their pattern."""
        code, findings = as_user("+@all", "~other:*", "&*")
        assert 3 == code
        finding = next(f for f in findings.values() if f["level"] == "error")
        assert f"~dtimer:{{{namespace}}}:*" in finding["remedy"]

    def test_missing_channels_are_named(self, as_user, namespace):
        """If the channels are not allowed, events are late, and the remedy has their pattern."""
        code, findings = as_user("+@all", "~*", "resetchannels")
        assert 1 == code
        assert f"&dtimer:{{{namespace}}}:*" in findings["pub/sub"]["remedy"]


class TestByInfo:
    """Checks that use only the reply to INFO."""

    @pytest.mark.parametrize(
        ("version", "level"),
        [("6.0.20", Level.ERROR), ("6.2.0", Level.OK), ("10.0.0", Level.OK), ("?", Level.WARNING)],
    )
    def test_old_versions_are_refused(self, version, level):
        """Redis 6.2 is the oldest supported version."""
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
    def test_persistence_needs_a_synced_append_only_file(self, info, settings, level):
        """Only a synced append-only file keeps acknowledged data."""
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
    def test_eviction_policies_that_harm_are_found(self, info, level):
        """Keys of dtimer have no expiry, so only policies for all keys are harmful."""
        assert level is by_info.memory(info).level


@pytest.mark.parametrize("columns", [80, 160])
def test_no_line_is_wider_than_the_terminal(columns, server, namespace):
    """A wrapped line would break the columns."""
    with Terminal("doctor", env=environment(server, namespace), columns=columns) as terminal:
        terminal.wait()
    lines = terminal.written.splitlines()
    assert any(line.startswith("warning persistence") for line in lines)
    assert columns >= max(map(len, lines))
