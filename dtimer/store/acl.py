"""
List the permissions that the Redis user of a node needs, and recognise a refusal.

The list comes from the headers of the scripts. `rules` turns the list into arguments of
``ACL SETUSER``, which the documentation shows. The check before joining and ``dtimer doctor``
report missing permissions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dtimer.store.keys import Keys
from dtimer.store.scripts import commands, header, verbs

# The commands that call scripts.
_CALLS = ("eval", "evalsha")


def _list(*roles: str) -> tuple[str, ...]:
    """Return the commands of the verbs that have one of *roles*, or of all verbs."""
    named = (name for name in verbs() if not roles or header(name).roles.intersection(roles))
    return (*_CALLS, *sorted(commands(*named)))


#: The commands for pub/sub. Without them, nodes find events by polling.
WAKES = ("publish", "subscribe")

#: The commands that a node's scripts run, and those that call them. A node needs all of them.
NODE = tuple(command for command in _list("node") if command not in WAKES)

#: For a client that posts, cancels, reschedules and peeks, and never joins.
PRODUCER = _list("producer")

#: All commands that nodes, DTimer, RunAt and the command line need.
EVERYTHING = (*_list(), "subscribe")


#: The additional commands in a cluster: to find the keys, and to create the library's client.
CLUSTER = ("cluster|slots", "command")

#: The commands for a Sentinel, which has its own users.
SENTINEL = ("sentinel|masters",)


def pattern(ns: str) -> str:
    """Return the pattern that matches the keys and the channels of a namespace."""
    return Keys.of(ns).due.removesuffix("due") + "*"


def rules(ns: str, commands: tuple[str, ...] = EVERYTHING) -> str:
    """Return the ACL rules that allow only *commands*, and only on the namespace *ns*."""
    what = pattern(ns)
    return f"~{what} resetchannels &{what} -@all {_plus(sorted(commands))}"


# The error texts of Redis 6.2 to 7.0 and of later versions, for a command that the client sends and
# for a command that a script runs.
_COMMAND = re.compile(r"permissions? to run the '([\w|]+)'|executing the script can't run this")
_KEY = re.compile(r"access .*\bkeys?\b")
_CHANNEL = re.compile(r"(?:access .*|publish to the )\bchannels?\b")


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    The subject of a refusal by an ACL.

    ``kind`` is ``"command"``, ``"key"`` or ``"channel"``. ``command`` is the name of the command,
    or ``""`` if the error does not contain it.
    """

    kind: str
    command: str = ""


def refusal(text: str) -> Refusal | None:
    """Return the refusal that an error text of the server reports, or None."""
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
    A missing permission: its description with the consequence, and the ACL rule that grants it.

    With ``fatal``, a node cannot join without it. With ``late``, events are delivered late.
    """

    text: str
    rule: str
    fatal: bool = False
    late: bool = False


def missing(refused: Mapping[str, str], ns: str) -> Iterator[Missing]:
    """Yield the missing permissions, given the *refused* commands and the error of each."""
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
        text = f"no permission for {', '.join(node)}: required to join"
        yield Missing(text, _plus(node), fatal=True)
    if wakes:
        yield Missing(f"no permission for {', '.join(wakes)}: {_LATE}", _plus(wakes), late=True)
    if rest:
        text = f"no permission for {', '.join(rest)}: some calls will be refused"
        yield Missing(text, _plus(rest))


def _plus(commands: list[str]) -> str:
    return " ".join(f"+{command}" for command in commands)


_LATE = "wakes do not arrive; events are found by polling"


def remedy(text: str, ns: str) -> str:
    """Return the ``ACL SETUSER`` call that fixes the refusal in the error *text*, or ``""``."""
    found = refusal(text)
    if found is None:
        return ""
    rule = {
        "key": f"~{pattern(ns)}",
        "channel": f"&{pattern(ns)}",
        "command": f"+{found.command}" if found.command else "",
    }[found.kind]
    return f"ACL SETUSER <user> {rule or rules(ns)}"
