"""The permissions of the Redis user: the least that is enough, and each that is missing named."""

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
from dtimer.store import access
from dtimer.store.connect import source
from dtimer.store.inventory import Inventory
from dtimer.store.keys import Keys
from dtimer.store.scripts import load
from dtimer.testing import Catch

LUA = Path(dtimer.__file__).parent / "store" / "lua"
VERBS = sorted(path.stem for path in LUA.glob("*.lua"))

#: What a node asks for from join to leave, whatever its program does besides.
NODES = ("open", "join", "leave", "turn", "settle", "extend", "supply", "trim", "peek", "schedule")
PRODUCERS = ("open", "post", "mint", "cancel", "reschedule", "peek")

#: What a client library sends by itself, and a script is called with; doctor's questions.
ASIDE = {"auth", "hello", "client|setinfo", "client|info", "ping", "info", "config|get", "command"}


def run_by(*verbs):
    """The commands that the scripts of these verbs run."""
    found = set()
    for verb in verbs:
        text = load(verb).source.decode()
        found |= set(re.findall(r"redis\.p?call\(\s*'([A-Z]+)'", text))
    return {command.lower() for command in found}


class TestTheList:
    """The list in the library is the truth of the scripts."""

    def test_everything(self):
        """What the scripts run, and what calls them and listens: no more and no less."""
        assert run_by(*VERBS) | {"eval", "evalsha", "subscribe"} == set(access.EVERYTHING)
        assert len(access.EVERYTHING) == len(set(access.EVERYTHING))

    def test_a_node(self):
        """What no node can do without is what the scripts of its own life run."""
        assert run_by(*NODES) - {"publish"} | {"eval", "evalsha"} == set(access.NODE)

    def test_a_producer(self):
        """A producer's list is what posting, cancelling, moving and peeking run."""
        assert run_by(*PRODUCERS) | {"eval", "evalsha"} == set(access.PRODUCER)

    def test_each_is_tried(self):
        """The self-test tries each command that a script runs."""
        text = (LUA / "permissions.lua").read_text()
        tried = {c.lower() for c in re.findall(r"^  \{'([A-Z]+)'", text, re.MULTILINE)}
        assert run_by(*VERBS) == tried

    @pytest.mark.parametrize("name", ["SECURITY.rst", "docs/security.rst"])
    def test_the_documentation(self, name):
        """The lines that the documentation shows are those that the list makes."""
        text = " ".join((LUA.parents[2] / name).read_text().split())
        assert f"ACL SETUSER dtimer reset on >PASSWORD {access.rules('dt')}" in text
        if name.startswith("docs"):
            producer = access.rules("dt", access.PRODUCER)
            assert f"ACL SETUSER producer reset on >PASSWORD {producer}" in text


@pytest.fixture(scope="module")
def guarded():
    """A server on TCP, for users of its own."""
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
    """Makes a user with these rules alone; returns its URL."""

    def make(*rules, name="poor"):
        admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">x", *rules)
        return guarded.url.replace("redis://", f"redis://{name}:x@")

    return make


@pytest.fixture
def command(guarded, ns, monkeypatch, capsys):
    """Runs a command of the command line as a user."""
    run = runner(guarded, ns, monkeypatch, capsys)

    def call(url, *words, code=0):
        monkeypatch.setenv("DTIMER_URL", url)
        ran = run(*words)
        assert code == ran.code, ran
        return ran

    return call


def refused(admin):
    """What the server has refused, but for what client libraries try by themselves."""
    return [
        entry["object"]
        for entry in admin.acl_log()
        if not str(entry["object"]).lower().startswith(("client", "info", "ping", "config"))
    ]


def drive(url, ns):
    """Do all there is to do as a node, and as a stream."""
    node = DTimer("node", url, ns=ns, backoff=1, poll_interval=50, lease=600)
    caught, retried = Catch(node, "event"), Catch(node, "retry")
    heard = Catch(node, "error")

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
        assert heard.next().event == {"fail": 1}
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
        assert [] == [e for e in iter_empty(heard) if "Redis" in str(e)]
    with RunAt(f"{ns}:stream", redis=url) as stream:
        stream.write("key", 1)
        assert "key" == stream.read(5_000)
        assert stream.confirm("key")


def administer(url, command, tmp_path):
    """Do all there is to do as a person at the command line."""
    file = tmp_path / "events.jsonl"
    for words in (
        ["post", '{"n": 1}', "1h", "--id", "cli"],
        ["peek", "cli"],
        ["reschedule", "cli", "2h"],
        ["upcoming"],
        ["stats"],
        ["nodes"],
        ["dead"],
        ["every", "1h", '{"n": 1}', "--id", "tick"],
        ["cron", "0 0 1 1 *", '{"n": 1}', "--id", "tock"],
        ["schedules"],
        ["pause"],
        ["resume"],
        ["export", file, "--dead", "--yes"],
        ["import", file],
        ["unschedule", "tick", "--yes"],
        ["cancel", "cli"],
        ["purge", "--yes"],
        ["top", "--once"],
    ):
        command(url, *words)


def iter_empty(caught):
    """What was caught and not taken."""
    while not caught.empty():
        yield caught.next()


class TestTheLine:
    """A user with exactly that line."""

    @pytest.fixture
    def ours(self, user, ns):
        """Its URL: of the namespace, and of the stream beside it."""
        rules = access.rules(ns).split()
        return user(*rules, *access.rules(f"{ns}:stream").split()[:3:2])

    def test_everything_works_and_all_of_it_is_used(self, ours, ns, admin, command, tmp_path):
        """
        All that DTimer, RunAt and the command line do is allowed by it; nothing is refused on
        the way; and each command of it is used.
        """
        admin.config_resetstat()
        before = set(admin.info("commandstats"))
        drive(ours, ns)
        administer(ours, command, tmp_path)
        assert [] == refused(admin)
        used = {
            name.removeprefix("cmdstat_")
            for name, stat in admin.info("commandstats").items()
            if name not in before and stat["calls"] > stat["rejected_calls"]
        }
        assert set(access.EVERYTHING) - used == set()

    def test_doctor_finds_nothing_missing(self, ours, command):
        """Of the permissions, the pub/sub and the schema it says that they are well."""
        ran = command(ours, "doctor", "--json", code=1)  # the server of the test keeps nothing
        found = {f["check"]: f["level"] for f in ran.objects}
        assert ["ok"] * 5 == [
            found[c] for c in ("connection", "pub/sub", "schema", "permissions", "clock")
        ]

    @pytest.mark.parametrize("protocol", [2, 3])
    def test_with_either_protocol(self, ours, ns, protocol):
        """A client that speaks RESP2, or RESP3, is served the same."""
        with redis.Redis.from_url(ours, protocol=protocol) as client:
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
        "words",
        [
            ["FLUSHALL"],
            ["FLUSHDB"],
            ["KEYS", "*"],
            ["SCAN", "0"],
            ["CONFIG", "GET", "*"],
            ["INFO"],
            ["ACL", "LIST"],
            ["SCRIPT", "FLUSH"],
            ["GET", "dtimer:{dt}:due"],
            ["HGET", "foreign", "field"],
            ["HSET", "foreign", "field", "value"],
            ["DEL", "dtimer:{other}:due"],
            ["PUBLISH", "foreign", ""],
            ["PUBLISH", "dtimer:{other}:wake:x", ""],
            ["SUBSCRIBE", "foreign"],
            ["PSUBSCRIBE", "*"],
        ],
        ids=" ".join,
    )
    def test_nothing_else_is_allowed(self, ours, guarded, words):
        """Other commands, keys and channels are refused, also from within a script."""
        with redis.Redis.from_url(ours) as client:
            with pytest.raises(redis.ResponseError, match=r"permission"):
                client.execute_command(*words)
            with pytest.raises(redis.ResponseError, match=r"permission|can't|not allowed"):
                client.eval("return redis.call(unpack(ARGV))", 0, *words)

    def test_the_namespace_of_another_is_refused(self, ours, ns):
        """A node of a namespace that its user is not for does not join, and names the keys."""
        node = DTimer("node", ours, ns="other")
        with pytest.raises(StoreError, match=re.escape("~dtimer:{other}:*")):
            node.join()
        node.leave()


class TestMissing:
    """Each permission, taken away."""

    @pytest.mark.fault("F104")
    @pytest.mark.parametrize("command", access.EVERYTHING)
    def test_a_command(self, command, user, ns, caplog, guarded):
        """
        Without any one command a node does not join, or works and says what it cannot do; the
        command is named, and so is the rule that allows it.
        """
        url = user(*access.rules(ns).split(), f"-{command}")
        told = joined(url, ns, caplog)
        assert f"+{command}" in told or f"'{command}'" in told, told
        assert (command in access.NODE) is told.startswith("StoreError")

    @pytest.mark.parametrize("name", access.EVERYTHING)
    def test_doctor_names_it(self, name, user, ns, command):
        """The remedy of doctor is the rule that allows the command."""
        url = user(*access.rules(ns).split(), f"-{name}")
        late = name in access.WAKES
        ran = command(url, "doctor", "--json", code=1 if late else 3)
        bad = [f for f in ran.objects if f["level"] == ("warning" if late else "error")]
        assert any(re.search(rf"\+{name}\b", f["remedy"]) for f in bad), bad

    @pytest.mark.fault("F104")
    def test_the_keys(self, user, ns, caplog, command):
        """Without its keys a node does not join; their pattern is named, by doctor too."""
        rules = access.rules(ns).split()
        url = user(*rules[1:], "~other:*")
        told = joined(url, ns, caplog)
        assert told.startswith("StoreError")
        assert rules[0] in told
        ran = command(url, "doctor", "--json", code=3)
        assert any(rules[0] in f["remedy"] for f in ran.objects)

    @pytest.mark.fault("F104")
    def test_the_channels(self, user, ns, caplog, command):
        """Without its channels a node polls; their pattern is named, by doctor too."""
        rules = access.rules(ns).split()
        url = user(*[rule for rule in rules if not rule.startswith("&")])
        told = joined(url, ns, caplog)
        assert f"&dtimer:{{{ns}}}:*" in told
        ran = command(url, "doctor", "--json", code=1)
        assert any(f"&dtimer:{{{ns}}}:*" in f["remedy"] for f in ran.objects)

    def test_several(self, user, ns, caplog):
        """All that is missing is named at once, not one a try."""
        url = user(*access.rules(ns).split(), "-zrem", "-hset", "-time", "-publish")
        told = joined(url, ns, caplog)
        for name in ("zrem", "hset", "time"):
            assert f"+{name}" in told

    @pytest.mark.fault("F104")
    def test_taken_away_later_it_is_not_hammered(self, user, ns, guarded):
        """
        A refusal within a script needs a person like any other: it is told with the words of
        the server, and the next try may wait.
        """
        rules = access.rules(ns).split()
        url = user(*rules)
        store = Inventory(source(url, 1.0), ns, timeout=3.0)
        store.join("node", "{}")
        user(*rules, "-hset")
        with pytest.raises(StoreError, match="refuses this client") as caught:
            store.join("node", "{}")
        assert store.slow(caught.value)
        assert store.slow(caught.value.__cause__)
        user(*rules)
        store.leave("node")
        store.close()

    @pytest.mark.fault("F104")
    @pytest.mark.parametrize("command", ["zadd", "zrem", "hset", "hdel"])
    def test_no_schedule_is_changed_by_half(self, command, user, ns, admin):
        """
        Where a command is taken away that a change of a schedule needs, the change is refused and
        nothing of it is done: the pending occurrence is there, and the next will follow.
        """
        rules = access.rules(ns).split()
        timer = DTimer("timer", user(*rules), ns=ns, timeout=LONGEST_CALL)
        timer.every(300_000, {"n": 1}, id="beat")
        keys = [key for key in Keys.of(ns) if admin.exists(key)]
        before = {key: admin.dump(key) for key in keys}
        (id,) = admin.zrange(Keys.of(ns).due, 0, -1)
        user(*rules, f"-{command}")
        for change in (
            lambda: timer.every(420_000, {"n": 2}, id="beat"),
            lambda: timer.pause_schedule("beat"),
            lambda: timer.cancel(id.decode()),
        ):
            with pytest.raises(StoreError, match="refuses this client"):
                change()
            assert before == {key: admin.dump(key) for key in Keys.of(ns) if admin.exists(key)}
        if command != "zrem":
            with pytest.raises(StoreError, match="refuses this client"):
                timer.every(420_000, {"n": 2}, id="another")
            assert before == {key: admin.dump(key) for key in Keys.of(ns) if admin.exists(key)}
        user(*rules)
        timer.leave()

    def test_the_self_test_changes_nothing(self, guarded, admin, ns):
        """Not even in a namespace that is new, or of another version, or foreign."""
        store = Inventory(source(guarded.url, 1.0), ns, timeout=3.0)
        keys = store.keys
        assert {} == store.permissions()
        assert 0 == admin.exists(*keys)
        admin.hset(keys.sys, "v", "9")
        assert {} == store.permissions()
        assert {b"v": b"9"} == admin.hgetall(keys.sys)
        admin.set(keys.body, "foreign")
        assert {"HGET", "HLEN"} <= set(store.permissions())
        assert b"foreign" == admin.get(keys.body)
        store.close()


def joined(url, ns, caplog):
    """Join and post; return what was said: raised, emitted as an error, or logged."""
    caplog.clear()
    node = DTimer("node", url, ns=ns, poll_interval=50, timeout=LONGEST_CALL)
    errors = Catch(node, "error")
    caught = Catch(node, "event")
    try:
        node.join()
    except StoreError as e:
        return f"StoreError: {e}"
    else:
        with contextlib.suppress(StoreError):
            node.post({"n": 1})
            assert {"n": 1} == caught.next()[0]
        told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        if not told:
            told = [str(errors.next())]
        return "; ".join(told)
    finally:
        node.leave(0)


class TestProducer:
    """A user that posts and never joins."""

    def test_all_that_a_producer_does(self, user, ns, admin, guarded):
        """It posts, moves, cancels and peeks; a node of another user is woken by it."""
        url = user(*access.rules(ns, access.PRODUCER).split(), name="producer")
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
        assert [] == refused(admin)
        producer.leave()

    def test_it_cannot_join(self, user, ns):
        """It is told what it lacks for that."""
        url = user(*access.rules(ns, access.PRODUCER).split(), name="producer")
        node = DTimer("producer", url, ns=ns)
        with pytest.raises(StoreError, match=r"\+zrangebyscore"):
            node.join()
        node.leave()


def test_refusals_are_read_in_the_words_of_each_version():
    """Redis 6.2, 7.0 and 7.2 say it in three ways, by itself and within a script."""
    said = json.loads((Path(__file__).parent / "refusals.json").read_text())
    for text, (kind, name) in said.items():
        assert access.Refusal(kind, name) == access.refusal(text), text
    for other in ("OOM command not allowed", "DTCORRUPT the key dtimer:{access}:due holds", ""):
        assert access.refusal(other) is None


def test_a_subscription_of_its_own(user, ns, guarded):
    """Where the subscription has a client of its own, what that may not do is named as well."""
    url = user(*access.rules(ns, ("subscribe",)).split(), "resetchannels")
    node = DTimer("node", guarded.url, url, ns=ns)
    errors = Catch(node, "error")
    with node:
        assert f"&dtimer:{{{ns}}}:*" in str(errors.next())
