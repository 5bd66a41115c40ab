"""The faults of the server. At most one of them is active at a time: see `chaos.injections`."""

from __future__ import annotations

import contextlib

import redis

from chaos.injections import FaultContext, Injection, injection
from chaos.processes import PASSWORD, USER
from dtimer import DTimer
from dtimer.store.keys import Keys

OVERFLOWS = "client_output_buffer_limit_disconnections"

#: The ACL rules of the soak's user, who may do everything.
ALLOWED = ["reset", "on", f">{PASSWORD}", "~*", "&*", "+@all"]


def stat(context: FaultContext, name: str) -> int:
    return int(context.admin.info("stats")[name])


@injection("F13", server=True)
def drop_the_idle(context: FaultContext) -> Injection:
    """Let the server close connections that are idle for a second."""
    yield "server", context.seconds(1.5, 2.5)
    context.admin.config_set("timeout", 1)
    yield
    context.admin.config_set("timeout", 0)
    yield True


@injection("F14", server=True)
def too_many_clients(context: FaultContext) -> Injection:
    """Close all connections while the server accepts only a few clients."""
    yield "server", context.seconds(0.5, 1.5)
    before = stat(context, "rejected_connections")
    context.admin.config_set("maxclients", 3)
    context.admin.client_kill_filter(_type="normal", skipme=True)
    yield
    struck = stat(context, "rejected_connections") > before
    context.admin.config_set("maxclients", 10_000)
    yield struck


@injection("F19", server=True)
def kill_the_server(context: FaultContext) -> Injection:
    """Kill the server, and restart it from its append-only file."""
    yield "server", context.seconds(0.1, 1.5)
    # With "everysec", the server may reply before it writes, if an fsync is under way. A kill then
    # loses acknowledged writes. `chaos.durability` measures that loss; the soak avoids it.
    context.admin.config_set("appendfsync", "always")
    context.server.kill9()
    yield
    context.server.start(wait=False)
    while not _answers(context):
        yield
    yield True


def _answers(context: FaultContext) -> bool:
    """Return True if the server has loaded its file and answers."""
    try:
        if context.others:
            # A server of a cluster accepts writes only from two seconds after its start.
            return bool(context.admin.cluster("INFO")["cluster_state"] == "ok")
        return bool(context.admin.ping())
    except (redis.ConnectionError, redis.TimeoutError):
        return False


@injection("F22", server=True)
def freeze_the_server(context: FaultContext) -> Injection:
    """Stop the server; when it continues, it executes the commands that have arrived."""
    yield "server", context.seconds(0.5, 2.5)
    context.server.pause()
    yield
    context.server.resume()
    yield True


@injection("F23", server=True)
def block_the_server(context: FaultContext) -> Injection:
    """Block the server with a slow command of another client."""
    seconds = context.seconds(0.5, 1.5)
    yield "server", seconds
    with context.send("DEBUG", "SLEEP", f"{seconds:.2f}") as line:
        yield
        line.settimeout(5)
        yield line.recv(16).startswith(b"+OK")


@injection("F24", server=True)
def busy(context: FaultContext) -> Injection:
    """Block the server with an endless script of another client."""
    yield "server", context.seconds(0.6, 1.5)
    with context.send("EVAL", '"while true do end"', "0"):
        yield
        struck = False
        try:
            context.admin.ping()
        except redis.ResponseError as e:
            struck = str(e).startswith("BUSY") or "running a script" in str(e)
        with contextlib.suppress(redis.ResponseError):
            context.admin.script_kill()
        yield struck


@injection("F25", server=True)
def pause_clients(context: FaultContext) -> Injection:
    """Let the server suspend its clients with CLIENT PAUSE."""
    seconds = context.seconds(0.3, 1.2)
    yield "server", seconds
    context.admin.client_pause(round(seconds * 1000), all=context.rng.random() < 0.5)
    yield
    context.admin.client_unpause()
    yield True


@injection("F26", server=True)
def kill_clients(context: FaultContext) -> Injection:
    """Let the server close all pub/sub connections, or all others."""
    yield "server", context.seconds(0.3, 1)
    kind = context.rng.choice(["pubsub", "normal"])
    killed = context.admin.client_kill_filter(_type=kind, skipme=True)
    yield
    yield killed > 0


@injection("F27", server=True)
def overflow(context: FaultContext) -> Injection:
    """Overflow the output buffer of a node's subscription, which the node does not read."""
    who = context.node()
    assert who.subscription
    yield who.name, context.seconds(0.5, 1.5)
    limit = "client-output-buffer-limit"
    context.admin.config_set(limit, "pubsub 32kb 16kb 1")
    keys = Keys.of(context.ns)
    asking = DTimer("nemesis", context.server.url, ns=context.ns, timeout=5_000)
    mine = [node.incarnation for node in asking.nodes() if node.id == who.name]
    asking.leave()
    before = stat(context, OVERFLOWS)
    who.subscription.blackhole()
    for incarnation in mine:
        # All messages in one script: the buffers of the network would absorb a slower stream.
        context.admin.eval(_PUBLISH, 0, keys.wake(incarnation), "x" * 10_000)
    yield
    who.subscription.heal()
    context.admin.config_set(limit, "pubsub 32mb 8mb 60")
    yield stat(context, OVERFLOWS) > before


_PUBLISH = "for i = 1, 200 do redis.call('PUBLISH', ARGV[1], ARGV[2]) end"


@injection("F28", server=True)
def flush_scripts(context: FaultContext) -> Injection:
    """Let the server forget all scripts, twice."""
    yield "server", context.seconds(0.1, 0.5)
    context.admin.script_flush()
    yield
    context.admin.script_flush()
    yield True


def _refuses(context: FaultContext, error: str) -> bool:
    """Return True if the server refuses a write with this error."""
    try:
        context.admin.set("soak:probe", "")
    except redis.RedisError as e:
        return error in f"{type(e).__name__} {e}"
    context.admin.delete("soak:probe")
    return False


@injection("F30", server=True)
def out_of_memory(context: FaultContext) -> Injection:
    """Let the server refuse writes because its memory is full."""
    yield "server", 2
    context.admin.config_set("maxmemory", 1)
    yield
    struck = _refuses(context, "OutOfMemory")
    context.admin.config_set("maxmemory", 0)
    yield struck


@injection("F33", server=True)
def cannot_persist(context: FaultContext) -> Injection:
    """Let the server refuse writes because it cannot save a snapshot."""
    yield "server", context.seconds(1, 2)
    obstacle = context.server.folder / "dump.rdb"
    obstacle.unlink(missing_ok=True)
    obstacle.mkdir()
    context.admin.config_set("save", "3600 1000000000")
    with contextlib.suppress(redis.ResponseError):
        context.admin.bgsave(schedule=True)
    yield
    struck = _refuses(context, "MISCONF")
    context.admin.config_set("save", "")
    obstacle.rmdir()
    yield struck


@injection("F34", server=True)
def demote(context: FaultContext) -> Injection:
    """Demote the server to a replica, which refuses writes."""
    yield "server", context.seconds(0.5, 1.5)
    context.admin.replicaof("127.0.0.1", 1)
    yield
    struck = _refuses(context, "ReadOnly")
    context.admin.replicaof("NO", "ONE")
    yield struck


@injection("F36", server=True)
def no_replicas(context: FaultContext) -> Injection:
    """Let the server refuse writes because it has too few replicas."""
    yield "server", context.seconds(0.5, 1.5)
    context.admin.config_set("min-replicas-to-write", 1)
    yield
    struck = _refuses(context, "NOREPLICAS")
    context.admin.config_set("min-replicas-to-write", 0)
    yield struck


@injection("F103", server=True)
def refuse_the_user(context: FaultContext) -> Injection:
    """Change the user's password, disable the user or delete it, and close its connections."""
    yield "server", context.seconds(0.5, 1)
    how = context.rng.choice([["off"], ["resetpass", ">another"], []])
    if how:
        context.admin.execute_command("ACL", "SETUSER", USER, *how)
    else:
        context.admin.execute_command("ACL", "DELUSER", USER)
    with contextlib.suppress(redis.ResponseError):
        context.admin.execute_command("CLIENT", "KILL", "USER", USER)
    yield
    context.admin.execute_command("ACL", "SETUSER", USER, *ALLOWED)
    yield True


@injection("F104", server=True)
def deny(context: FaultContext) -> Injection:
    """Take one of the required permissions from the user."""
    yield "server", context.seconds(0.5, 1)
    denied = context.rng.choice(["-evalsha", "-subscribe", "-publish", "-zadd", "resetchannels"])
    context.admin.execute_command("ACL", "SETUSER", USER, denied)
    if denied == "-subscribe":
        context.admin.client_kill_filter(_type="pubsub", skipme=True)
    yield
    context.admin.execute_command("ACL", "SETUSER", USER, *ALLOWED)
    yield True


@injection("F44")
def hang_the_others(context: FaultContext) -> Injection:
    """Stop the other servers of the cluster, in addition to any other active fault."""
    yield "others", context.seconds(1.0, 3.0)
    for other in context.others:
        other.pause()
    yield
    for other in context.others:
        other.resume()
    yield True
