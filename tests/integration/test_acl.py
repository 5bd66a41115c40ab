"""The Redis user's permissions: the documented list is enough, and each missing one is named."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from pathlib import Path

import pytest
import redis
from servers import LONGEST_CALL, Server, eventually
from shell import runner

import dtimer
from dtimer import DTimer, RunAt, StoreError
from dtimer.store import acl
from dtimer.store.connection.sources import source
from dtimer.store.keys import Keys
from dtimer.store.store import Store
from dtimer.testing import Catch

LUA = Path(dtimer.__file__).parent / "store" / "lua"


class TestCommandList:
    """The command list in the library matches what the scripts run."""

    def test_no_command_is_listed_twice(self):
        """The full list has the commands of the scripts, those that call them, and SUBSCRIBE."""
        assert {"eval", "evalsha", "publish", "subscribe"} <= set(acl.EVERYTHING)
        assert len(acl.EVERYTHING) == len(set(acl.EVERYTHING))

    def test_node_and_producer_need_less_than_everything(self):
        """A list that falls back to all verbs would grant too much."""
        assert set(acl.NODE) < set(acl.EVERYTHING)
        assert set(acl.PRODUCER) < set(acl.EVERYTHING)
        assert "publish" not in acl.NODE

    @pytest.mark.parametrize("name", ["SECURITY.rst", "docs/security.rst"])
    def test_the_documented_rules_are_those_of_the_library(self, name):
        """The ACL rules in the documentation are those that the library produces."""
        text = " ".join((LUA.parents[2] / name).read_text().split())
        assert f"ACL SETUSER dtimer reset on >PASSWORD {acl.rules('dt')}" in text
        if name.startswith("docs"):
            producer = acl.rules("dt", acl.PRODUCER)
            assert f"ACL SETUSER producer reset on >PASSWORD {producer}" in text


@pytest.fixture(scope="module")
def guarded():
    """A TCP server on which tests create their own users."""
    with Server(tcp=True) as server:
        yield server


@pytest.fixture
def admin(guarded):
    with guarded.client() as client:
        client.acl_log_reset()
        yield client


@pytest.fixture
def ns():
    return f"acl-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def user(guarded, admin):
    """A function: give a user exactly these rules, and return the user's URL."""

    def user(*rules, name="poor"):
        admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">x", *rules)
        return guarded.url.replace("redis://", f"redis://{name}:x@")

    return user


@pytest.fixture
def rules(ns):
    """The documented rules: a key pattern, a channel pattern and commands."""
    return acl.rules(ns).split()


@pytest.fixture
def command(guarded, ns, monkeypatch, capsys):
    """A function: run a command of the command line as the user of a URL."""
    run = runner(guarded, ns, monkeypatch, capsys)

    def command(url, *words, code=0):
        monkeypatch.setenv("DTIMER_URL", url)
        ran = run(*words)
        assert code == ran.code, ran
        return ran

    return command


def refusals(admin):
    """Return what the server refused, except what client libraries try by themselves."""
    return [
        entry["object"]
        for entry in admin.acl_log()
        if not str(entry["object"]).lower().startswith(("client", "info", "ping", "config"))
    ]


def use_library(url, ns):
    """Use every operation of a node and of a stream."""
    node = DTimer("node", url, ns=ns, backoff=1, poll_interval=50, lease=600)
    caught, retried, errors = (Catch(node, name) for name in ("event", "retry", "error"))

    @node.on("event")
    def handle(events):
        if events[0].get("fail") and events[0].attempt == 1:
            raise ValueError("first")

    with node:
        eventually(lambda: node.health().ok)
        node.post({"n": 1}, id="one")
        assert {"n": 1} == caught.next()[0]
        node.post({"fail": 1}, max_retries=1)
        caught.next()
        retried.next()
        caught.next()
        assert errors.next().event == {"fail": 1}
        node.post_many([({"n": i}, 3_600_000) for i in range(150)])
        node.post({}, 3_600_000, id="far")
        assert node.reschedule("far", 7_200_000)
        assert len(list(node.upcoming())) == 151
        assert node.cancel("far")
        node.pause()
        node.resume()
        node.every(3_600_000, {"beat": 1}, id="beat")
        node.cron("0 0 1 1 *", {"year": 1}, id="year")
        assert node.run_now("beat")
        assert {"beat": 1} == caught.next()[0]
        node.pause_schedule("beat")
        node.resume_schedule("beat")
        node.unschedule("beat")
        assert ["year"] == [s.id for s in node.schedules()]
        assert ["node"] == [n.id for n in node.nodes()]
        node.post({"fail": 1}, id="dead", max_retries=0)
        caught.next()
        eventually(lambda: node.peek("dead") and node.peek("dead").state.value == "dead")
        assert ["dead"] == [letter.id for letter in node.dead()]
        assert node.revive("dead")
        caught.next()
        node.stats()
        node.purge_dead()
        assert node.update("e-1", {}) is False
        assert 1 == node.cancel_many(["far"])["not_found"]
        assert 0 == node.revive_dead()
        assert not node.drop("dead")
        node.clear()
        while not errors.empty():
            assert "Redis" not in str(errors.next())
    with RunAt(f"{ns}:stream", redis=url) as stream:
        stream.write("key", 1)
        assert "key" == stream.read(5_000)
        assert stream.confirm("key")


def use_command_line(url, command, tmp_path):
    """Use every operation that a person has at the command line."""
    file = tmp_path / "events.jsonl"
    command(url, "post", '{"n": 1}', "1h", "--id", "cli")
    command(url, "every", "1h", '{"n": 1}', "--id", "tick")
    command(url, "cron", "0 0 1 1 *", '{"n": 1}', "--id", "tock")
    for line in (
        *("peek cli", "reschedule cli 2h", "upcoming", "stats", "nodes", "dead", "schedules"),
        *("pause", "resume", f"export {file} --dead --yes", f"import {file}"),
        *("unschedule tick --yes", "update cli {}", "cancel cli", "purge --yes", "top --once"),
        *("cancel --prefix cli", "revive --reason failed", "clear --yes"),
    ):
        words = line.split()
        command(url, *words)


class TestDocumentedRules:
    """A user with exactly the documented rules."""

    @pytest.fixture
    def documented_url(self, user, ns, rules):
        """The URL of a user with the rules of the namespace and of the stream in the test."""
        return user(*rules, *acl.rules(f"{ns}:stream").split()[:3:2])

    def test_the_rules_are_sufficient_and_every_command_is_used(
        self, documented_url, ns, admin, command, tmp_path
    ):
        """The server refuses nothing, and no command in the rules is superfluous."""
        admin.config_resetstat()
        before = set(admin.info("commandstats"))
        use_library(documented_url, ns)
        use_command_line(documented_url, command, tmp_path)
        assert [] == refusals(admin)
        used = {
            name.removeprefix("cmdstat_")
            for name, stat in admin.info("commandstats").items()
            if name not in before and stat["calls"] > stat["rejected_calls"]
        }
        assert set(acl.EVERYTHING) - used == set()

    def test_doctor_reports_no_missing_permission(self, documented_url, command):
        """Doctor reports that permissions, pub/sub and schema are in order."""
        # the test server does not persist its data, which doctor reports
        ran = command(documented_url, "doctor", "--json", code=1)
        levels = {f["check"]: f["level"] for f in ran.objects}
        assert ["ok"] * 5 == [
            levels[c] for c in ("connection", "pub/sub", "schema", "permissions", "clock")
        ]

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_both_protocols_work(self, documented_url, ns, protocol):
        """A client that speaks RESP2 or RESP3 works with these rules."""
        with redis.Redis.from_url(documented_url, protocol=protocol) as client:
            node = DTimer("node", client, ns=ns)
            caught = Catch(node, "event")
            with node, client.pipeline(transaction=False) as pipe:
                eventually(lambda: node.health().ok)
                node.post({"n": 1})
                assert {"n": 1} == caught.next()[0]
                node.post({"n": 2}, pipe=pipe)
                pipe.execute()
                assert {"n": 2} == caught.next()[0]

    @pytest.mark.parametrize(
        "line",
        [
            *["FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET *", "INFO", "ACL LIST"],
            *["SCRIPT FLUSH", "GET dtimer:{dt}:due", "HGET foreign field"],
            *["HSET foreign field value", "DEL dtimer:{other}:due", "PUBLISH foreign -"],
            *["PUBLISH dtimer:{other}:wake:x -", "SUBSCRIBE foreign", "PSUBSCRIBE *"],
        ],
    )
    def test_other_commands_keys_and_channels_are_refused(self, documented_url, line):
        """The rules allow no other command, key or channel, not even from within a script."""
        with redis.Redis.from_url(documented_url) as client:
            with pytest.raises(redis.ResponseError, match=r"permission"):
                client.execute_command(*line.split())
            with pytest.raises(redis.ResponseError, match=r"permission|can't|not allowed"):
                client.eval("return redis.call(unpack(ARGV))", 0, *line.split())

    def test_joining_another_namespace_is_refused_and_the_keys_are_named(self, documented_url):
        """The namespace may be misspelt in the program or in the rules, so the error names it."""
        with pytest.raises(StoreError, match=re.escape("~dtimer:{other}:*")):
            DTimer("node", documented_url, ns="other").join()


@pytest.fixture
def reports(ns, caplog):
    """A function: join and post as a user; return what is raised, emitted as error or logged."""

    def reports(url):
        caplog.clear()
        node = DTimer("node", url, ns=ns, poll_interval=50, timeout=LONGEST_CALL)
        errors, caught = Catch(node, "error"), Catch(node, "event")
        try:
            node.join()
        except StoreError as e:
            return f"StoreError: {e}"
        else:
            with contextlib.suppress(StoreError):
                node.post({"n": 1})
                assert {"n": 1} == caught.next()[0]
            # Only then the callback thread has written all records.
            node.leave(0)
            warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
            return "; ".join(warnings or [str(errors.next())])
        finally:
            node.leave(0)

    return reports


class TestMissingPermission:
    """The documented rules with one permission removed."""

    @pytest.mark.fault("F104")
    @pytest.mark.parametrize("name", acl.EVERYTHING)
    def test_a_missing_command_is_named(self, name, user, rules, reports, command):
        """
        Without a command of the node list, join fails. Without another command, the node works and
        reports what it cannot do. The message and doctor name the rule that allows the command.
        """
        url = user(*rules, f"-{name}")
        report = reports(url)
        assert f"+{name}" in report or f"'{name}'" in report, report
        assert (name in acl.NODE) is report.startswith("StoreError")
        only_slower = name in acl.WAKES
        ran = command(url, "doctor", "--json", code=1 if only_slower else 3)
        problems = [f for f in ran.objects if f["level"] == ("warning" if only_slower else "error")]
        assert any(re.search(rf"\+{name}\b", f["remedy"]) for f in problems), problems

    @pytest.mark.fault("F104")
    @pytest.mark.parametrize("mark", ["~", "&"], ids=["keys", "channels"])
    def test_a_missing_pattern_is_named(self, user, rules, reports, command, mark):
        """Without its keys a node cannot join; without its channels it polls."""
        (pattern,) = [rule for rule in rules if rule.startswith(mark)]
        url = user(*[rule for rule in rules if rule != pattern], f"{mark}other:*")
        report = reports(url)
        assert (mark == "~") is report.startswith("StoreError")
        assert pattern in report
        ran = command(url, "doctor", "--json", code=3 if mark == "~" else 1)
        assert any(pattern in f["remedy"] for f in ran.objects)

    def test_all_missing_commands_are_named_at_once(self, user, rules, reports):
        """The error names all missing commands, so that the user need not fix them one by one."""
        report = reports(user(*rules, "-zrem", "-hset", "-time", "-publish"))
        assert all(f"+{name}" in report for name in ("zrem", "hset", "time"))

    @pytest.mark.fault("F104")
    def test_a_permission_revoked_later_is_retried_slowly(self, user, ns, rules):
        """Only a person can fix a refusal that occurs within a script. The error quotes it."""
        url = user(*rules)
        store = Store(source(url, 1.0), ns, timeout=3.0)
        store.join("node", "{}")
        user(*rules, "-hset")
        with pytest.raises(StoreError, match="refuses this client") as caught:
            store.join("node", "{}")
        assert store.needs_operator(caught.value)
        assert store.needs_operator(caught.value.__cause__)
        user(*rules)
        store.leave("node")
        store.release()

    @pytest.mark.fault("F104")
    @pytest.mark.parametrize("revoked", ["zadd", "zrem", "hset", "hdel"])
    def test_a_refused_change_of_a_schedule_changes_nothing(self, revoked, user, ns, rules, admin):
        """The pending occurrence stays, and the next one will follow it."""

        def dumps():
            return {key: admin.dump(key) for key in Keys.of(ns) if admin.exists(key)}

        timer = DTimer("timer", user(*rules), ns=ns, timeout=LONGEST_CALL)
        timer.every(300_000, {"n": 1}, id="beat")
        before = dumps()
        (id,) = admin.zrange(Keys.of(ns).due, 0, -1)
        user(*rules, f"-{revoked}")
        changes = [
            lambda: timer.every(420_000, {"n": 2}, id="beat"),
            lambda: timer.pause_schedule("beat"),
            lambda: timer.cancel(id.decode()),
        ]
        if revoked != "zrem":
            changes.append(lambda: timer.every(420_000, {"n": 2}, id="another"))
        for change in changes:
            with pytest.raises(StoreError, match="refuses this client"):
                change()
            assert before == dumps()
        user(*rules)
        timer.leave()

    def test_the_self_test_changes_nothing(self, guarded, admin, ns):
        """The namespace may be new, foreign or of another version."""
        store = Store(source(guarded.url, 1.0), ns, timeout=3.0)
        keys = store.keys
        assert {} == store.server.permissions()
        assert 0 == admin.exists(*keys)
        admin.hset(keys.sys, "v", "9")
        assert {} == store.server.permissions()
        assert {b"v": b"9"} == admin.hgetall(keys.sys)
        admin.set(keys.body, "foreign")
        assert {"HGET", "HLEN"} <= set(store.server.permissions())
        assert b"foreign" == admin.get(keys.body)
        store.release()


class TestProducer:
    """A user that posts and never joins."""

    def test_the_producers_rules_are_sufficient(self, user, ns, admin, guarded):
        """A producer can post, move, cancel and peek. Its posts wake a node of another user."""
        url = user(*acl.rules(ns, acl.PRODUCER).split(), name="producer")
        node = DTimer("node", guarded.url, ns=ns, poll_interval=30_000)
        caught = Catch(node, "event")
        producer = DTimer("producer", url, ns=ns)
        with node:
            eventually(lambda: node.health().ok)
            producer.post({"n": 1})
            assert {"n": 1} == caught.next()[0]
            producer.post({}, 60_000, id="far")
            assert producer.reschedule("far", 70_000)
            assert producer.peek("far").state.value == "scheduled"
            assert producer.cancel("far")
            producer.post_many([({}, 60_000)] * 3)
        assert [] == refusals(admin)
        producer.leave()

    def test_a_producer_cannot_join(self, user, ns):
        """The error names the permission that joining needs."""
        url = user(*acl.rules(ns, acl.PRODUCER).split(), name="producer")
        with pytest.raises(StoreError, match=r"\+zrangebyscore"):
            DTimer("producer", url, ns=ns).join()


def test_the_refusals_of_each_redis_version_are_recognized():
    """Redis 6.2, 7.0 and 7.2 word a refusal differently, and again differently within a script."""
    refusals = json.loads((Path(__file__).parent / "refusals.json").read_text())
    for text, (kind, name) in refusals.items():
        assert acl.Refusal(kind, name) == acl.refusal(text), text
    for other in ("OOM command not allowed", "DTCORRUPT the key dtimer:{access}:due holds", ""):
        assert acl.refusal(other) is None


def test_a_refused_subscription_on_a_second_client_is_named(user, ns, guarded):
    """The subscription may have its own client, whose user lacks other permissions."""
    url = user(*acl.rules(ns, ("subscribe",)).split(), "resetchannels")
    node = DTimer("node", guarded.url, url, ns=ns)
    errors = Catch(node, "error")
    with node:
        assert f"&dtimer:{{{ns}}}:*" in str(errors.next())
