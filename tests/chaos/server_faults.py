"""The faults of the server, one of which may last at a time: see `chaos.scene`."""

from __future__ import annotations

import contextlib

import redis

from chaos.crew import PASSWORD, USER
from chaos.scene import Injection, Scene, injection
from dtimer import DTimer
from dtimer.store.keys import Keys

OVERFLOWS = "client_output_buffer_limit_disconnections"

#: What the user of the soak may do: everything.
ALLOWED = ["reset", "on", f">{PASSWORD}", "~*", "&*", "+@all"]


def stat(scene: Scene, name: str) -> int:
    return int(scene.admin.info("stats")[name])


@injection("F13", server=True)
def drop_the_idle(scene: Scene) -> Injection:
    """The server ends connections that are idle for a second."""
    yield "server", scene.for_(1.5, 2.5)
    scene.admin.config_set("timeout", 1)
    yield
    scene.admin.config_set("timeout", 0)
    yield True


@injection("F14", server=True)
def too_many_clients(scene: Scene) -> Injection:
    """The server has as many clients as it may, when all of them are to come again."""
    yield "server", scene.for_(0.5, 1.5)
    before = stat(scene, "rejected_connections")
    scene.admin.config_set("maxclients", 3)
    scene.admin.client_kill_filter(_type="normal", skipme=True)
    yield
    struck = stat(scene, "rejected_connections") > before
    scene.admin.config_set("maxclients", 10_000)
    yield struck


@injection("F19", server=True)
def kill_the_server(scene: Scene) -> Injection:
    """The server is killed, and restarts from its append-only file."""
    yield "server", scene.for_(0.1, 1.5)
    # While an fsync is under way, "everysec" answers before it writes, and what was answered is
    # lost with the process. What that loses, other tests show (`chaos.durability`).
    scene.admin.config_set("appendfsync", "always")
    scene.server.kill9()
    yield
    scene.server.start(wait=False)
    while not _answers(scene):
        yield
    yield True


def _answers(scene: Scene) -> bool:
    """Tell whether the server has read its file, and answers."""
    try:
        if scene.others:
            # It takes writes two seconds after that it began, and not before.
            return bool(scene.admin.cluster("INFO")["cluster_state"] == "ok")
        return bool(scene.admin.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


@injection("F22", server=True)
def freeze_the_server(scene: Scene) -> Injection:
    """The server stops where it stands; what is sent to it is done when it goes on."""
    yield "server", scene.for_(0.5, 2.5)
    scene.server.pause()
    yield
    scene.server.resume()
    yield True


@injection("F23", server=True)
def block_the_server(scene: Scene) -> Injection:
    """A command of somebody else takes its time."""
    seconds = scene.for_(0.5, 1.5)
    yield "server", seconds
    with scene.shout("DEBUG", "SLEEP", f"{seconds:.2f}") as line:
        yield
        line.settimeout(5)
        yield line.recv(16).startswith(b"+OK")


@injection("F24", server=True)
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


@injection("F25", server=True)
def pause_clients(scene: Scene) -> Injection:
    """The server keeps its clients waiting."""
    seconds = scene.for_(0.3, 1.2)
    yield "server", seconds
    scene.admin.client_pause(round(seconds * 1000), all=scene.rng.random() < 0.5)
    yield
    scene.admin.client_unpause()
    yield True


@injection("F26", server=True)
def kill_clients(scene: Scene) -> Injection:
    """The server ends connections."""
    yield "server", scene.for_(0.3, 1)
    kind = scene.rng.choice(["pubsub", "normal"])
    killed = scene.admin.client_kill_filter(_type=kind, skipme=True)
    yield
    yield killed > 0


@injection("F27", server=True)
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
    before = stat(scene, OVERFLOWS)
    who.ears.blackhole()
    for life in mine:
        # At once: what is in between would take a lot, too.
        scene.admin.eval(_TELL_A_LOT, 0, keys.wake(life), "x" * 10_000)
    yield
    who.ears.heal()
    scene.admin.config_set(limit, "pubsub 32mb 8mb 60")
    yield stat(scene, OVERFLOWS) > before


_TELL_A_LOT = "for i = 1, 200 do redis.call('PUBLISH', ARGV[1], ARGV[2]) end"


@injection("F28", server=True)
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


@injection("F30", server=True)
def out_of_memory(scene: Scene) -> Injection:
    """The memory of the server is full."""
    yield "server", 2
    scene.admin.config_set("maxmemory", 1)
    yield
    struck = _refuses(scene, "OutOfMemory")
    scene.admin.config_set("maxmemory", 0)
    yield struck


@injection("F33", server=True)
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


@injection("F34", server=True)
def demote(scene: Scene) -> Injection:
    """The server is made a replica, and takes no writes any more."""
    yield "server", scene.for_(0.5, 1.5)
    scene.admin.replicaof("127.0.0.1", 1)
    yield
    struck = _refuses(scene, "ReadOnly")
    scene.admin.replicaof("NO", "ONE")
    yield struck


@injection("F36", server=True)
def no_replicas(scene: Scene) -> Injection:
    """The server wants more replicas than it has."""
    yield "server", scene.for_(0.5, 1.5)
    scene.admin.config_set("min-replicas-to-write", 1)
    yield
    struck = _refuses(scene, "NOREPLICAS")
    scene.admin.config_set("min-replicas-to-write", 0)
    yield struck


@injection("F103", server=True)
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


@injection("F104", server=True)
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


@injection("F44")
def hang_the_others(scene: Scene) -> Injection:
    """The other servers of the cluster stop where they stand, beside whatever else goes wrong."""
    yield "others", scene.for_(1.0, 3.0)
    for other in scene.others:
        other.pause()
    yield
    for other in scene.others:
        other.resume()
    yield True
