"""The faults of the network: see `chaos.injections`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proxy import Proxy

from chaos.injections import FaultContext, Injection, injection
from chaos.processes import Member
from chaos.workload import LEASE


@injection("F01")
def lose_a_reply(context: FaultContext) -> Injection:
    """Lose the reply to an executed command; close the connection, or leave it open."""
    who = context.any_member()
    yield who.name, context.seconds(1, 2)
    who.proxy.drop_reply_once(close=context.rng.random() < 0.7)
    yield
    yield who.proxy.wait_dropped(0)


@injection("F02")
def close_within_a_reply(context: FaultContext) -> Injection:
    """Close a connection within a reply, or right after it."""
    who = context.any_member()
    yield who.name, context.seconds(1, 2)
    if context.rng.random() < 0.3:
        who.proxy.close_reply_once()
    else:
        who.proxy.truncate_reply_once(context.rng.randint(0, 40))
    yield
    yield who.proxy.wait_dropped(0)


def _proxied(
    who: Member,
    seconds: float,
    begin: Callable[[Proxy], None],
    proxies: Iterable[Proxy | None] | None = None,
) -> Injection:
    """
    Inject a fault of proxies, and heal them at the end.

    Args:
        who: The process that the fault strikes.
        seconds: How long the fault lasts.
        begin: Begins the fault of one proxy.
        proxies: The proxies of the process. By default only that of its commands.
    """
    struck = [who.proxy] if proxies is None else [proxy for proxy in proxies if proxy]
    yield who.name, seconds
    for proxy in struck:
        begin(proxy)
    yield
    for proxy in struck:
        proxy.heal()
    yield True


def _both(who: Member) -> tuple[Proxy, Proxy | None]:
    """Return the proxies of a process: that of its commands, and that of its subscription."""
    return who.proxy, who.subscription


@injection("F03")
def blackhole_commands(context: FaultContext) -> Injection:
    """Let the commands of a process get neither a reply nor an error."""
    return _proxied(context.any_member(), context.seconds(0.3, 1.5), Proxy.blackhole)


@injection("F04")
def blackhole_subscription(context: FaultContext) -> Injection:
    """Lose all messages to a node's subscription, without an error."""
    who = context.node()
    return _proxied(who, context.seconds(1, 2.5), Proxy.blackhole, [who.subscription])


@injection("F12")
def cut_off(context: FaultContext) -> Injection:
    """Cut a node off for longer than its leases last."""
    who, seconds = context.node(), context.seconds(2, 3.5) * LEASE / 1000
    return _proxied(who, seconds, Proxy.blackhole, _both(who))


@injection("F05")
def reset(context: FaultContext) -> Injection:
    """Reset, or half close, all connections of a process."""
    who = context.any_member()
    yield who.name, context.seconds(0.3, 1)
    for proxy in filter(None, _both(who)):
        (proxy.cut if context.rng.random() < 0.5 else proxy.half_close)()
    yield
    yield True


@injection("F07")
def delay(context: FaultContext) -> Injection:
    """Delay all bytes of a process."""
    who, seconds = context.any_member(), context.seconds(1.5, 3)
    return _proxied(who, seconds, lambda proxy: proxy.delay(context.rng.uniform(5, 30)))


@injection("F08")
def narrow(context: FaultContext) -> Injection:
    """Limit the bandwidth of a process."""
    who, seconds = context.any_member(), context.seconds(1, 2)
    return _proxied(who, seconds, lambda proxy: proxy.throttle(10_000))


@injection("F108")
def choke(context: FaultContext) -> Injection:
    """Let only the beginning of each large reply reach a process, less than a large claim."""
    who, seconds = context.any_member(), context.seconds(2, 4)
    return _proxied(who, seconds, lambda proxy: proxy.choke(20_000))


def _refuse(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


@injection("F09")
def refuse(context: FaultContext) -> Injection:
    """Refuse the connections of a process."""
    who = context.any_member()
    return _proxied(who, context.seconds(0.5, 2), _refuse, _both(who))
