"""The faults of the server. At most one of them is active at a time: see `chaos.scene`."""

from __future__ import annotations

import contextlib

import redis

from chaos.crew import PASSWORD, USER
from chaos.scene import Injection, Scene, injection
from dtimer import DTimer
from dtimer.store.keys import Keys

OVERFLOWS = "client_output_buffer_limit_disconnections"

#: The ACL rules of the soak's user, who may do everything.
ALLOWED = ["reset", "on", f">{PASSWORD}", "~*", "&*", "+@all"]


def stat(scene: Scene, name: str) -> int:
    return int(scene.admin.info("stats")[name])


@injection("F13", server=True)
def drop_the_idle(scene: Scene) -> Injection:
    """Let the server close connections that are idle for a second."""
    yield "server", scene.seconds(1.5, 2.5)
    scene.admin.config_set("timeout", 1)
    yield
    scene.admin.config_set("timeout", 0)
    yield True


@injection("F14", server=True)
def too_many_clients(scene: Scene) -> Injection:
    """Close all connections while the server accepts only a few clients."""
    yield "server", scene.seconds(0.5, 1.5)
    before = stat(scene, "rejected_connections")
    scene.admin.config_set("maxclients", 3)
    scene.admin.client_kill_filter(_type="normal", skipme=True)
    yield
    struck = stat(scene, "rejected_connections") > before
    scene.admin.config_set("maxclients", 10_000)
    yield struck


@injection("F19", server=True)
def kill_the_server(scene: Scene) -> Injection:
    """Kill the server, and restart it from its append-only file."""
    yield "server", scene.seconds(0.1, 1.5)
    # With "everysec", the server may reply before it writes, if an fsync is under way. A kill then
    # loses acknowledged writes. `chaos.durability` measures that loss; the soak avoids it.
    scene.admin.config_set("appendfsync", "always")
    scene.server.kill9()
    yield
    scene.server.start(wait=False)
    while not _answers(scene):
        yield
    yield True


def _answers(scene: Scene) -> bool:
    """Return True if the server has loaded its file and answers."""
    try:
        if scene.others:
            # A server of a cluster accepts writes only from two seconds after its start.
            return bool(scene.admin.cluster("INFO")["cluster_state"] == "ok")
        return bool(scene.admin.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


@injection("F22", server=True)
def freeze_the_server(scene: Scene) -> Injection:
    """Stop the server; when it continues, it executes the commands that have arrived."""
    yield "server", scene.seconds(0.5, 2.5)
    scene.server.pause()
    yield
    scene.server.resume()
    yield True


@injection("F23", server=True)
def block_the_server(scene: Scene) -> Injection:
    """Block the server with a slow command of another client."""
    seconds = scene.seconds(0.5, 1.5)
    yield "server", seconds
    with scene.send("DEBUG", "SLEEP", f"{seconds:.2f}") as line:
        yield
        line.settimeout(5)
        yield line.recv(16).startswith(b"+OK")


@injection("F24", server=True)
def busy(scene: Scene) -> Injection:
    """Block the server with an endless script of another client."""
    yield "server", scene.seconds(0.6, 1.5)
    with scene.send("EVAL", '"while true do end"', "0"):
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
    """Let the server suspend its clients with CLIENT PAUSE."""
    seconds = scene.seconds(0.3, 1.2)
    yield "server", seconds
    scene.admin.client_pause(round(seconds * 1000), all=scene.rng.random() < 0.5)
    yield
    scene.admin.client_unpause()
    yield True


@injection("F26", server=True)
def kill_clients(scene: Scene) -> Injection:
    """Let the server close all pub/sub connections, or all others."""
    yield "server", scene.seconds(0.3, 1)
    kind = scene.rng.choice(["pubsub", "normal"])
    killed = scene.admin.client_kill_filter(_type=kind, skipme=True)
    yield
    yield killed > 0


@injection("F27", server=True)
def overflow(scene: Scene) -> Injection:
    """Overflow the output buffer of a node's subscription, which the node does not read."""
    who = scene.node()
    assert who.ears
    yield who.name, scene.seconds(0.5, 1.5)
    limit = "client-output-buffer-limit"
    scene.admin.config_set(limit, "pubsub 32kb 16kb 1")
    keys = Keys.of(scene.ns)
    asking = DTimer("nemesis", scene.server.url, ns=scene.ns, timeout=5_000)
    mine = [node.incarnation for node in asking.nodes() if node.id == who.name]
    asking.leave()
    before = stat(scene, OVERFLOWS)
    who.ears.blackhole()
    for incarnation in mine:
        # All messages in one script: the buffers of the network would absorb a slower stream.
        scene.admin.eval(_PUBLISH, 0, keys.wake(incarnation), "x" * 10_000)
    yield
    who.ears.heal()
    scene.admin.config_set(limit, "pubsub 32mb 8mb 60")
    yield stat(scene, OVERFLOWS) > before


_PUBLISH = "for i = 1, 200 do redis.call('PUBLISH', ARGV[1], ARGV[2]) end"


@injection("F28", server=True)
def flush_scripts(scene: Scene) -> Injection:
    """Let the server forget all scripts, twice."""
    yield "server", scene.seconds(0.1, 0.5)
    scene.admin.script_flush()
    yield
    scene.admin.script_flush()
    yield True


def _refuses(scene: Scene, error: str) -> bool:
    """Return True if the server refuses a write with this error."""
    try:
        scene.admin.set("soak:probe", "")
    except redis.RedisError as e:
        return error in f"{type(e).__name__} {e}"
    scene.admin.delete("soak:probe")
    return False


@injection("F30", server=True)
def out_of_memory(scene: Scene) -> Injection:
    """Let the server refuse writes because its memory is full."""
    yield "server", 2
    scene.admin.config_set("maxmemory", 1)
    yield
    struck = _refuses(scene, "OutOfMemory")
    scene.admin.config_set("maxmemory", 0)
    yield struck


@injection("F33", server=True)
def cannot_persist(scene: Scene) -> Injection:
    """Let the server refuse writes because it cannot save a snapshot."""
    yield "server", scene.seconds(1, 2)
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
    """Demote the server to a replica, which refuses writes."""
    yield "server", scene.seconds(0.5, 1.5)
    scene.admin.replicaof("127.0.0.1", 1)
    yield
    struck = _refuses(scene, "ReadOnly")
    scene.admin.replicaof("NO", "ONE")
    yield struck


@injection("F36", server=True)
def no_replicas(scene: Scene) -> Injection:
    """Let the server refuse writes because it has too few replicas."""
    yield "server", scene.seconds(0.5, 1.5)
    scene.admin.config_set("min-replicas-to-write", 1)
    yield
    struck = _refuses(scene, "NOREPLICAS")
    scene.admin.config_set("min-replicas-to-write", 0)
    yield struck


@injection("F103", server=True)
def refuse_the_user(scene: Scene) -> Injection:
    """Change the user's password, disable the user or delete it, and close its connections."""
    yield "server", scene.seconds(0.5, 1)
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
    """Take one of the required permissions from the user."""
    yield "server", scene.seconds(0.5, 1)
    denied = scene.rng.choice(["-evalsha", "-subscribe", "-publish", "-zadd", "resetchannels"])
    scene.admin.execute_command("ACL", "SETUSER", USER, denied)
    if denied == "-subscribe":
        scene.admin.client_kill_filter(_type="pubsub", skipme=True)
    yield
    scene.admin.execute_command("ACL", "SETUSER", USER, *ALLOWED)
    yield True


@injection("F44")
def hang_the_others(scene: Scene) -> Injection:
    """Stop the other servers of the cluster, in addition to any other active fault."""
    yield "others", scene.seconds(1.0, 3.0)
    for other in scene.others:
        other.pause()
    yield
    for other in scene.others:
        other.resume()
    yield True
