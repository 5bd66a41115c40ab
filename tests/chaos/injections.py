"""
The faults of the nemesis, each by its number in the catalogue.

An injection is a generator. It yields whom it is about to strike and for how many seconds
that is to last, strikes, and yields again; resumed once more it ends what it did, and yields
whether it did strike. One that never did has not been tried, and the run says so.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import redis
from servers import Server, connect

from chaos.crew import PASSWORD, USER, Crew, Member
from chaos.mix import LEASE
from dtimer import DTimer
from dtimer.store.keys import Keys

Injection = Iterator[tuple[str, float] | bool | None]

#: What the user of the soak may do: everything.
ALLOWED = ["reset", "on", f">{PASSWORD}", "~*", "&*", "+@all"]


@dataclass
class Scene:
    """Whom there is to strike, and by what."""

    server: Server
    admin: redis.Redis
    crew: Crew
    ns: str
    rng: random.Random
    #: By how many seconds the clock of the server is ahead.
    ahead: float = 0.0

    def step(self, seconds: float) -> None:
        """Put the clock of the server on, or back."""
        self.ahead = max(_SLOWEST, min(_FASTEST, self.ahead + seconds))
        self.server.set_clock(self.ahead)

    def anybody(self) -> Member:
        """Choose one of all."""
        return self.rng.choice(self.crew.members)

    def node(self) -> Member:
        """Choose a node."""
        return self.rng.choice(self.crew.of("handling"))

    def for_(self, low: float, high: float) -> float:
        """Choose a duration in seconds."""
        return self.rng.uniform(low, high)

    def shout(self, *command: str) -> socket.socket:
        """Send a command without waiting for its reply; return the connection."""
        line = connect(self.server.url)
        line.sendall((" ".join(command) + "\r\n").encode())
        return line


def _stat(scene: Scene, name: str) -> int:
    return int(scene.admin.info("stats")[name])


OVERFLOWS = "client_output_buffer_limit_disconnections"

#: By number: the injection, and whether it strikes the server, which one may do at a time.
INJECTIONS: dict[str, tuple[Callable[[Scene], Injection], bool]] = {}


def _register(number: str, *, server: bool = False) -> Callable[..., Any]:
    def add(f: Callable[[Scene], Injection]) -> Callable[[Scene], Injection]:
        INJECTIONS[number] = f, server
        return f

    return add


# ------------------------------------------------------------------------------ the network


@_register("F01")
def lose_a_reply(scene: Scene) -> Injection:
    """What was asked was done; the reply is swallowed, with its connection or without."""
    who = scene.anybody()
    yield who.name, scene.for_(1, 2)
    who.proxy.drop_reply_once(close=scene.rng.random() < 0.7)
    yield
    yield who.proxy.wait_dropped(0)


@_register("F02")
def close_amid_a_reply(scene: Scene) -> Injection:
    """The connection ends right behind a reply, or amid it."""
    who = scene.anybody()
    yield who.name, scene.for_(1, 2)
    if scene.rng.random() < 0.3:
        who.proxy.close_reply_once()
    else:
        who.proxy.truncate_reply_once(scene.rng.randint(0, 40))
    yield
    yield who.proxy.wait_dropped(0)


def _blackhole(
    scene: Scene, who: Member, seconds: float, *, ears: bool, commands: bool
) -> Injection:
    ways = [way for way, on in ((who.proxy, commands), (who.ears, ears)) if on and way]
    yield who.name, seconds
    for way in ways:
        way.blackhole()
    yield
    for way in ways:
        way.heal()
    yield True


@_register("F03")
def blackhole_commands(scene: Scene) -> Injection:
    """What somebody asks gets no answer, and no error either."""
    return _blackhole(scene, scene.anybody(), scene.for_(0.3, 1.5), ears=False, commands=True)


@_register("F04")
def blackhole_ears(scene: Scene) -> Injection:
    """A node hears nothing, and is not told."""
    return _blackhole(scene, scene.node(), scene.for_(1, 2.5), ears=True, commands=False)


@_register("F05")
def reset(scene: Scene) -> Injection:
    """All connections of one are reset, or half closed."""
    who = scene.anybody()
    ways = [way for way in (who.proxy, who.ears) if way]
    yield who.name, scene.for_(0.3, 1)
    for way in ways:
        if scene.rng.random() < 0.5:
            way.cut()
        else:
            way.half_close()
    yield
    yield True


@_register("F07")
def delay(scene: Scene) -> Injection:
    """Everything takes its time on the way."""
    who = scene.anybody()
    yield who.name, scene.for_(1.5, 3)
    who.proxy.delay(scene.rng.uniform(5, 30))
    yield
    who.proxy.heal()
    yield True


@_register("F08")
def narrow(scene: Scene) -> Injection:
    """Little gets through at a time."""
    who = scene.anybody()
    yield who.name, scene.for_(1, 2)
    who.proxy.throttle(10_000)
    yield
    who.proxy.heal()
    yield True


@_register("F09")
def refuse(scene: Scene) -> Injection:
    """One finds no server where it was."""
    who = scene.anybody()
    ways = [way for way in (who.proxy, who.ears) if way]
    yield who.name, scene.for_(0.5, 2)
    for way in ways:
        way.refuse()
        way.cut()
    yield
    for way in ways:
        way.heal()
    yield True


@_register("F12")
def cut_off(scene: Scene) -> Injection:
    """A node is cut off for longer than its leases last."""
    seconds = scene.for_(2, 3.5) * LEASE / 1000
    return _blackhole(scene, scene.node(), seconds, ears=True, commands=True)


# ------------------------------------------------------------------------------- the server


@_register("F13", server=True)
def drop_the_idle(scene: Scene) -> Injection:
    """The server ends connections that are idle for a second."""
    yield "server", scene.for_(1.5, 2.5)
    scene.admin.config_set("timeout", 1)
    yield
    scene.admin.config_set("timeout", 0)
    yield True


@_register("F14", server=True)
def too_many_clients(scene: Scene) -> Injection:
    """The server has as many clients as it may, when all of them are to come again."""
    yield "server", scene.for_(0.5, 1.5)
    before = _stat(scene, "rejected_connections")
    scene.admin.config_set("maxclients", 3)
    scene.admin.client_kill_filter(_type="normal", skipme=True)
    yield
    struck = _stat(scene, "rejected_connections") > before
    scene.admin.config_set("maxclients", 10_000)
    yield struck


@_register("F19", server=True)
def kill_the_server(scene: Scene) -> Injection:
    """The server is killed, and restarts from its append-only file."""
    yield "server", scene.for_(0.1, 1.5)
    scene.server.kill9()
    yield
    scene.server.start()
    yield True


@_register("F22", server=True)
def freeze_the_server(scene: Scene) -> Injection:
    """The server stops where it stands; what is sent to it is done when it goes on."""
    yield "server", scene.for_(0.5, 2.5)
    scene.server.pause()
    yield
    scene.server.resume()
    yield True


@_register("F23", server=True)
def block_the_server(scene: Scene) -> Injection:
    """A command of somebody else takes its time."""
    seconds = scene.for_(0.5, 1.5)
    yield "server", seconds
    with scene.shout("DEBUG", "SLEEP", f"{seconds:.2f}") as line:
        yield
        line.settimeout(5)
        yield line.recv(16).startswith(b"+OK")


@_register("F24", server=True)
def busy(scene: Scene) -> Injection:
    """A script of somebody else does not end."""
    yield "server", scene.for_(0.6, 1.5)
    with scene.shout("EVAL", '"while true do end"', "0"):
        yield
        struck = False
        try:
            scene.admin.ping()
        except redis.ResponseError as e:
            struck = str(e).startswith("BUSY") or "running a script" in str(e)
        with contextlib.suppress(redis.ResponseError):
            scene.admin.script_kill()
        yield struck


@_register("F25", server=True)
def pause_clients(scene: Scene) -> Injection:
    """The server keeps its clients waiting."""
    seconds = scene.for_(0.3, 1.2)
    yield "server", seconds
    scene.admin.client_pause(round(seconds * 1000), all=scene.rng.random() < 0.5)
    yield
    scene.admin.client_unpause()
    yield True


@_register("F26", server=True)
def kill_clients(scene: Scene) -> Injection:
    """The server ends connections."""
    yield "server", scene.for_(0.3, 1)
    kind = scene.rng.choice(["pubsub", "normal"])
    killed = scene.admin.client_kill_filter(_type=kind, skipme=True)
    yield
    yield killed > 0


@_register("F27", server=True)
def overflow(scene: Scene) -> Injection:
    """A node does not read what it is told, and is told a lot."""
    who = scene.node()
    assert who.ears
    yield who.name, scene.for_(0.5, 1.5)
    limit = "client-output-buffer-limit"
    scene.admin.config_set(limit, "pubsub 32kb 16kb 1")
    keys = Keys.of(scene.ns)
    asking = DTimer("nemesis", scene.server.url, ns=scene.ns, timeout=5_000)
    mine = [node.incarnation for node in asking.nodes() if node.id == who.name]
    asking.leave()
    before = _stat(scene, OVERFLOWS)
    who.ears.blackhole()
    for life in mine:
        for _ in range(12):
            scene.admin.publish(keys.wake(life), "x" * 1_000_000)
    yield
    who.ears.heal()
    scene.admin.config_set(limit, "pubsub 32mb 8mb 60")
    yield bool(mine) and _stat(scene, OVERFLOWS) > before


@_register("F28", server=True)
def flush_scripts(scene: Scene) -> Injection:
    """The server forgets the scripts."""
    yield "server", scene.for_(0.1, 0.5)
    scene.admin.script_flush()
    yield
    scene.admin.script_flush()
    yield True


def _refuses(scene: Scene, error: str) -> bool:
    """Tell whether the server refuses to write, with this error."""
    try:
        scene.admin.set("soak:probe", "")
    except redis.RedisError as e:
        return error in f"{type(e).__name__} {e}"
    scene.admin.delete("soak:probe")
    return False


@_register("F30", server=True)
def out_of_memory(scene: Scene) -> Injection:
    """The memory of the server is full."""
    yield "server", 2
    scene.admin.config_set("maxmemory", 1)
    yield
    struck = _refuses(scene, "OutOfMemory")
    scene.admin.config_set("maxmemory", 0)
    yield struck


@_register("F33", server=True)
def cannot_persist(scene: Scene) -> Injection:
    """The server cannot write its snapshot, and takes no writes any more."""
    yield "server", scene.for_(1, 2)
    obstacle = scene.server.folder / "dump.rdb"
    obstacle.unlink(missing_ok=True)
    obstacle.mkdir()
    scene.admin.config_set("save", "3600 1000000000")
    with contextlib.suppress(redis.ResponseError):
        scene.admin.bgsave(schedule=True)
    yield
    struck = _refuses(scene, "MISCONF")
    scene.admin.config_set("save", "")
    obstacle.rmdir()
    yield struck


@_register("F34", server=True)
def demote(scene: Scene) -> Injection:
    """The server is made a replica, and takes no writes any more."""
    yield "server", scene.for_(0.5, 1.5)
    scene.admin.replicaof("127.0.0.1", 1)
    yield
    struck = _refuses(scene, "ReadOnly")
    scene.admin.replicaof("NO", "ONE")
    yield struck


@_register("F36", server=True)
def no_replicas(scene: Scene) -> Injection:
    """The server wants more replicas than it has."""
    yield "server", scene.for_(0.5, 1.5)
    scene.admin.config_set("min-replicas-to-write", 1)
    yield
    struck = _refuses(scene, "NOREPLICAS")
    scene.admin.config_set("min-replicas-to-write", 0)
    yield struck


@_register("F103", server=True)
def refuse_the_user(scene: Scene) -> Injection:
    """The password is another, or the user is gone, and so are its connections."""
    yield "server", scene.for_(0.5, 1)
    how = scene.rng.choice([["off"], ["resetpass", ">another"], []])
    if how:
        scene.admin.execute_command("ACL", "SETUSER", USER, *how)
    else:
        scene.admin.execute_command("ACL", "DELUSER", USER)
    with contextlib.suppress(redis.ResponseError):
        scene.admin.execute_command("CLIENT", "KILL", "USER", USER)
    yield
    scene.admin.execute_command("ACL", "SETUSER", USER, *ALLOWED)
    yield True


@_register("F104", server=True)
def deny(scene: Scene) -> Injection:
    """The user may not do one of the things that it needs."""
    yield "server", scene.for_(0.5, 1)
    denied = scene.rng.choice(["-evalsha", "-subscribe", "-publish", "-zadd", "resetchannels"])
    scene.admin.execute_command("ACL", "SETUSER", USER, denied)
    if denied == "-subscribe":
        scene.admin.client_kill_filter(_type="pubsub", skipme=True)
    yield
    scene.admin.execute_command("ACL", "SETUSER", USER, *ALLOWED)
    yield True


# ----------------------------------------------------------------------------- the processes


@_register("F52")
def freeze_a_node(scene: Scene) -> Injection:
    """A node stands still for longer than its leases last, and then goes on."""
    who = scene.node()
    yield who.name, scene.for_(1.5, 3) * LEASE / 1000
    who.freeze()
    yield
    who.thaw()
    yield True


@_register("F58")
def die_at_a_point(scene: Scene) -> Injection:
    """A node dies where it is worst: between what the server did and what it knows of it."""
    who = scene.node()
    process = who.process
    assert process
    yield who.name, scene.for_(1, 2)
    who.tell(do="die", point=scene.rng.choice(DEATHS))
    yield
    yield process.poll() is not None


#: Points of `dtimer.faultpoints` at which a node may die, and that it reaches all the time.
DEATHS = [
    "claim.answered",
    "claim.handed",
    "handler.before",
    "handler.after",
    "settle.sending",
    "reply.reading",
]


@_register("F59")
def kill_somebody(scene: Scene) -> Injection:
    """Somebody dies, whatever he is doing."""
    who = scene.anybody()
    yield who.name, scene.for_(0.2, 0.5)
    who.kill()
    yield
    yield True


@_register("F66")
def fail_a_thread(scene: Scene) -> Injection:
    """A thread of a node gets no memory. That it came to that, the node records."""
    who = scene.node()
    loop = scene.rng.choice(["claimer", "claimer", "hand", "listener", "herald"])
    yield who.name, scene.for_(0.5, 1)
    who.tell(do="fail", point=f"loop.{loop}")
    yield
    yield True


# ---------------------------------------------------------------------------------- the time

#: How far the clock of the server may be off, in seconds.
_SLOWEST, _FASTEST = -5, 60


@_register("F49", server=True)
def put_the_clock_on(scene: Scene) -> Injection:
    """The clock of the server is put on, and stays so."""
    yield "server", scene.for_(0.5, 1)
    scene.step(scene.for_(1, 4))
    yield
    yield True


@_register("F50", server=True)
def put_the_clock_back(scene: Scene) -> Injection:
    """The clock of the server is put back, and stays so."""
    yield "server", scene.for_(0.5, 1)
    scene.step(-scene.for_(1, 3))
    yield
    yield True
