"""
What the Redis user of a node has to be allowed: the one list, and how a refusal reads.

`rules` makes of it what ``ACL SETUSER`` takes. The documentation shows that line, the
self-test at joining and ``dtimer doctor`` tell what of it is missing, and a test holds it
against the scripts: no command that is run is not on the list, and none on it is not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dtimer.store.keys import Keys

#: How scripts are called, and what those of a node run. Without any of these it cannot join.
NODE = (
    *("eval", "evalsha"),
    *("hdel", "hexists", "hget", "hincrby", "hmget", "hset", "hstrlen", "rename", "time", "type"),
    *("zadd", "zcard", "zcount", "zrange", "zrangebyscore", "zrem", "zscore"),
)

#: Without these events come by the poll.
WAKES = ("publish", "subscribe")

#: What else the scripts run: for post_many and RunAt, and for people who look.
REST = ("hkeys", "hlen", "hrandfield", "zmscore", "zrandmember", "zrank", "zrevrangebyscore")

#: All that a node needs, and all that the verbs of DTimer, RunAt and the command line do.
EVERYTHING = (*NODE, *WAKES, *REST)

#: For a client that posts, cancels, reschedules and peeks, and never joins.
PRODUCER = (
    *("eval", "evalsha", "publish"),
    *("hdel", "hexists", "hget", "hincrby", "hmget", "hset", "rename", "time", "type"),
    *("zadd", "zmscore", "zrange", "zrem", "zrevrangebyscore", "zscore"),
)


#: Besides, in a cluster: how the way is found, and what the client library asks when it is made.
CLUSTER = ("cluster|slots", "command")

#: All that it asks of a Sentinel, by a user of its own there.
SENTINEL = ("sentinel|masters",)


def pattern(ns: str) -> str:
    """Return the pattern that the keys, and the channels, of a namespace match."""
    return Keys.of(ns).due.removesuffix("due") + "*"


def rules(ns: str, commands: tuple[str, ...] = EVERYTHING) -> str:
    """Return the rules that allow *commands* on the namespace *ns*, and nothing else."""
    what = pattern(ns)
    return f"~{what} resetchannels &{what} -@all {_plus(sorted(commands))}"


# In the words of Redis 6.2 to 7.0, and of later ones: said of a command by itself, and of
# one in a script.
_COMMAND = re.compile(r"permissions? to run the '([\w|]+)'|executing the script can't run this")
_KEY = re.compile(r"access .*\bkeys?\b")
_CHANNEL = re.compile(r"(?:access .*|publish to the )\bchannels?\b")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an ACL has refused: a ``command``, with its name where it is told, key or channel."""

    kind: str
    command: str = ""


def refusal(text: str) -> Refusal | None:
    """Read an error of the server; None when it is not about permissions."""
    if found := _COMMAND.search(text):
        return Refusal("command", found[1] or "")
    if _CHANNEL.search(text):
        return Refusal("channel")
    if _KEY.search(text):
        return Refusal("key")
    return None


@dataclass(frozen=True, slots=True)
class Missing:
    """
    Something that is not allowed: what, what follows from it, and the rule that allows it.

    ``fatal``: no node can do without. ``late``: all works, but events come late.
    """

    text: str
    rule: str
    fatal: bool = False
    late: bool = False


def missing(refused: Mapping[str, str], ns: str) -> Iterator[Missing]:
    """Tell what is missing, from the commands that were refused and what the server said."""
    commands = []
    kinds = set()
    for command, text in refused.items():
        if (found := refusal(text)) is None:
            continue
        kinds.add(found.kind)
        if found.kind == "command":
            commands.append((found.command or command).lower())
    what = pattern(ns)
    if "key" in kinds:
        yield Missing(f"no permission for the keys {what}", f"~{what}", fatal=True)
    if "channel" in kinds:
        text = f"no permission for the channels {what}: {_LATE}"
        yield Missing(text, f"&{what}", late=True)
    node = [c for c in commands if c in NODE]
    wakes = [c for c in commands if c in WAKES]
    rest = [c for c in commands if c not in NODE + WAKES]
    if node:
        told = f"no permission for {', '.join(node)}: no node can do without"
        yield Missing(told, _plus(node), fatal=True)
    if wakes:
        yield Missing(f"no permission for {', '.join(wakes)}: {_LATE}", _plus(wakes), late=True)
    if rest:
        told = f"no permission for {', '.join(rest)}: some calls will be refused"
        yield Missing(told, _plus(rest))


def _plus(commands: list[str]) -> str:
    return " ".join(f"+{command}" for command in commands)


_LATE = "wakes do not arrive, and events come by the poll"


def remedy(text: str, ns: str) -> str:
    """Return what allows what *text*, an error of the server, says is refused; or ``""``."""
    found = refusal(text)
    if found is None:
        return ""
    rule = {
        "key": f"~{pattern(ns)}",
        "channel": f"&{pattern(ns)}",
        "command": f"+{found.command}" if found.command else "",
    }[found.kind]
    return f"ACL SETUSER <user> {rule or rules(ns)}"
