"""The catalogue, F09 to F18 but F12 and F17: a connection cannot be made, or is taken away."""

from __future__ import annotations

import contextlib
import errno
import random
import signal
import socket
import time

import pytest
import redis
from scripts import Script
from servers import eventually

from chaos.held import Held
from chaos.settings import CALL_LIMIT
from dtimer import DTimer, OutcomeUnknown, StoreError

pytestmark = pytest.mark.chaos

LATER = 3_600_000  # ms; no test is there to see it


class TestRefused:
    """There is nobody to talk to."""

    @pytest.mark.fault("F09")
    def test_the_server_is_down(self, watch, own):
        """
        While connections are refused the node tries again, ever less often, for as long as
        it takes; when the server is back it serves in time, and no acknowledged post is
        lost. Who posts meanwhile is told by the deadline that it was not done.
        """
        node = watch.node()
        caller = DTimer("caller", own.url, ns=watch.ns, timeout=300)
        before = watch.post(500)
        with watch.fault() as fault:
            own.kill9()
            with pytest.raises(StoreError, match="could not be reached") as caught:
                watch.in_time(caller.post, {})
            assert not isinstance(caught.value, OutcomeUnknown)
            with pytest.raises(StoreError, match="could not be reached"):
                watch.in_time(caller.join)
            assert not caller.joined
            fault.felt(1.0)
            own.start()
        watch.wait_handled(before)
        assert ["disconnected"] == [n for _, n, _ in node.said if n == "disconnected"]
        (error,) = node.errors
        assert "Redis does not answer; the node keeps trying" in str(error)
        caller.leave()

    @pytest.mark.fault("F09")
    def test_nobody_listens_to_errors(self, watch, own):
        """Without a listener of 'error' an outage is one line in the log, or two, and no more."""
        node = watch.node()
        node.timer.remove_all_listeners("error")
        own.kill9()
        eventually(lambda: node.heard("disconnected"))
        tries = watch.gauges.connects
        eventually(lambda: watch.gauges.connects > tries + 8)
        own.start()
        watch.recovered()
        lines = watch.gauges.lines
        assert 1 <= len(lines) <= 2
        assert lines[0].startswith("dtimer: Redis does not answer; the node keeps trying")

    @pytest.mark.fault("F10")
    def test_nobody_accepts(self, watch, own):
        """
        Where connections are neither accepted nor refused the connect has a deadline of its
        own: calls come back in time, and so does leave().
        """
        node, stuck = watch.node(), watch.node("stuck")
        with watch.fault(node) as fault:
            own.kill9()
            with _full(own.port):
                caller = DTimer("caller", own.url, ns=watch.ns, timeout=300)
                with pytest.raises(StoreError, match="could not be reached"):
                    watch.in_time(caller.post, {})
                with pytest.raises(StoreError, match="could not be reached"):
                    watch.in_time(caller.join)
                caller.leave()
                fault.felt(1.0)
                began = time.monotonic()
                stuck.timer.leave(100)
                assert time.monotonic() - began < CALL_LIMIT
                assert not stuck.timer.joined
            own.start()
            # It could not say goodbye; after a minute it would have been forgotten.
            watch.forget(stuck)


@contextlib.contextmanager
def _full(port):
    """Have a port on which connections are neither accepted nor refused."""
    with contextlib.ExitStack() as sockets:
        door = sockets.enter_context(socket.socket())
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(("127.0.0.1", port))
        door.listen(0)
        while True:
            knock = sockets.enter_context(socket.socket())
            knock.settimeout(0.05)
            try:
                knock.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        yield


class Names:
    """A name service: one name, and whither it leads."""

    NAME = "redis.dtimer.test"

    def __init__(self, monkeypatch, port):
        self.port = port
        self.asked = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host, port, *args, **kwargs):
        if host != self.NAME:
            return self._real(host, port, *args, **kwargs)
        self.asked += 1
        if self.port is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self._real("127.0.0.1", self.port, *args, **kwargs)


class TestNames:
    """The server has a name, and the name leads somewhere else, or nowhere."""

    @pytest.fixture
    def names(self, monkeypatch, proxy):
        return Names(monkeypatch, proxy.port)

    @pytest.fixture
    def url(self, own, names):
        with own.client() as client:
            client.execute_command("ACL", "SETUSER", "tea", "on", ">kettle", "~*", "&*", "+@all")
        return f"redis://tea:kettle@{names.NAME}:6379/0"

    @pytest.mark.fault("F11")
    def test_not_found(self, watch, proxy, names, url):
        """
        A name that is not found is looked up again and again; what is said of it names the
        host, and not the password.
        """
        node = watch.node(url=url)
        caller = DTimer("caller", url, ns=watch.ns, timeout=300)
        with watch.fault() as fault:
            names.port = None
            proxy.cut()
            fault.felt()
            with pytest.raises(StoreError, match="name resolution") as caught:
                watch.in_time(caller.post, {})
            asked = names.asked
            eventually(lambda: names.asked > asked + 2)
            names.port = proxy.port
        said = [str(caught.value), *map(str, node.errors), *map(str, node.heard("disconnected"))]
        assert any(names.NAME in text for text in said), said
        assert not any("kettle" in text for text in said)
        caller.leave()

    @pytest.mark.fault("F11")
    def test_another_address(self, watch, proxy, names, url, own):
        """A server that has moved is found by its name: no address is kept."""
        watch.node(url=url)
        with watch.fault(silent=True):
            names.port = own.port
            proxy.cut()
            watch.wait_handled(watch.post())
            eventually(lambda: 0 == proxy.connections)
            watch.healthy()


class TestDropped:
    """The server ends connections, or takes no more."""

    @pytest.mark.fault("F13")
    def test_idle_ones(self, watch, own):
        """
        A server, or a NAT, that drops what lies idle is not noticed: the node asks now and
        then to know that it is not deaf, and makes a dropped connection anew without a word.
        """
        watch.client.config_set("timeout", 1)
        node = watch.node(poll_interval=LATER)
        with watch.fault(silent=True):
            eventually(lambda: "evalsha" not in [c["cmd"] for c in watch.client.client_list()])
            # No poll would find it for an hour.
            id = watch.post()
            watch.wait_handled(id)
            assert watch.latest(id) < 500
        assert [] == node.errors

    @pytest.mark.fault("F14")
    def test_too_many_clients(self, watch):
        """
        A server that takes no more clients is tried again, not stormed, and told of once;
        the node is there again as soon as there is room.
        """
        node = watch.node()
        watch.post()
        with watch.fault() as fault:
            before = watch.client.config_get("maxclients")["maxclients"]
            watch.client.config_set("maxclients", 1)
            _kill_others(watch.client)
            fault.felt(1.0)
            assert "max number of clients" in str(node.timer.health().error)
            watch.client.config_set("maxclients", before)

    @pytest.mark.fault("F15")
    @pytest.mark.parametrize("kind", [redis.ConnectionPool, redis.BlockingConnectionPool])
    def test_the_pool_of_the_user_is_empty(self, watch, own, kind):
        """A node has connections of its own: whoever has all of the pool's does not starve it."""
        pool = kind.from_url(own.url, max_connections=1)
        with redis.Redis.from_pool(pool) as client:
            taken = pool.get_connection()
            watch.node(url=client)
            with watch.fault(silent=True):
                caller = DTimer("caller", client, ns=watch.ns)
                ids = [watch.in_time(watch.post, 0, caller) for _ in range(3)]
                watch.wait_handled(*ids)
                caller.leave()
            pool.release(taken)


def _kill_others(client):
    # The subscriptions last: with them alone gone a node would say that it is deaf.
    for kind in ("normal", "pubsub"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


# A node in a process that has all the descriptors it may have. Its word for word: what was
# told, and whether its threads are those that they were.
_STARVED = """
import resource, time
node = timer(lease=600, poll_interval=100, timeout=300)
told = []
node.on("error", lambda e: (told.append(e), say("error", e)))
node.on("event", lambda events: say("event", events[0]["n"]))
node.join()
threads = {t.ident for t in threading.enumerate() if t.name.startswith("dtimer-")}
say("joined", threading.main_thread().native_id)
heard()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
# What is open stays open, and nothing else can be, though a descriptor be closed before.
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
try:
    os.open("/dev/null", os.O_RDONLY)
except OSError as e:
    say("full", e.errno)
before = time.process_time()
heard()
try:
    node.post({})
except Exception as e:
    say(type(e).__name__, e)
say("health", node.health().ok, round(time.process_time() - before, 2))
say("told", len(told))
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
heard()
while not node.health().ok:
    threading.Event().wait(0.01)
alive = {t.ident for t in threading.enumerate() if t.name.startswith("dtimer-")}
say("threads", threads == alive, "health", node.health().ok, "told", len(told))
node.leave()
"""


@pytest.mark.fault("F16")
def test_no_more_descriptors(watch, own):
    """
    A process that can open no more sockets is a process without a server: told of once, no
    thread ends over it, and when there are descriptors again the node goes on.
    """
    with Script(own, watch.ns, _STARVED) as script:
        assert script.hear().startswith("joined")
        script.tell()
        assert f"full {errno.EMFILE}" == script.hear()
        began = time.monotonic()
        _kill_others(watch.client)
        assert "Too many open files" in script.hear()
        eventually(lambda: time.monotonic() > began + 0.5)
        script.tell()
        assert script.hear().startswith("StoreError Redis could not be reached")
        health, ok, cpu = script.hear().split()
        assert ("health", "False") == (health, ok)
        assert float(cpu) < 0.3, "it spins"
        assert "told 1" == script.hear()
        id = watch.post()
        watch.excused.add(id)
        assert f"event {watch.posted[id]['n']}" == script.hear()
        script.tell()
        assert "threads True health True told 1" == script.hear()
        script.end()


class TestSignals:
    """A handler of a signal that raises, in the midst of a call."""

    class Alarm(Exception):
        """Raised by the handler of a signal."""

    @pytest.fixture
    def seed(self):
        """Says how to see the same again."""
        seed = random.randrange(2**32)
        print(f"the seed was {seed}")  # noqa: T201 - shown where the test fails
        return seed

    @pytest.mark.fault("F18")
    def test_one_that_raises(self, watch, own, seed):
        """
        A call that a signal's handler breaks off ends with what that raised, and its
        connection with it: no later call reads a reply that was another's.
        """
        watch.node(handler=Held())
        caller = DTimer("caller", own.url, ns=watch.ns)
        ids = [caller.post({"mine": n}, LATER) for n in range(10)]
        chance = random.Random(seed)

        def ring(*_):
            raise self.Alarm

        before = signal.signal(signal.SIGALRM, ring)
        broken = 0
        try:
            for round in range(300):
                n = round % len(ids)
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.0004))
                    record = caller.peek(ids[n])
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except self.Alarm:
                    broken += 1
                    record = caller.peek(ids[n])
                assert {"mine": n} == record.event
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert broken > 10
        assert len(ids) == sum(bool(caller.cancel(id)) for id in ids)
        caller.leave()

    @pytest.mark.fault("F18")
    def test_one_that_returns(self, watch, own, proxy):
        """A call during which signals come and go waits on, and is answered."""
        caller = DTimer("caller", proxy.url, ns=watch.ns, timeout=2_000)
        caller.stats()
        heard = []
        before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            proxy.delay(60)
            id = watch.in_time(caller.post, {}, LATER)
            proxy.heal()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(heard) > 3
        assert 1 == caller.stats().totals["posted"]
        assert caller.cancel(id)
        caller.leave()
