"""The checks of the server, by what its INFO says: no I/O here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dtimer.cli.doctor.findings import Finding, error, ok, warning

OLDEST = (6, 2)


def version(info: Mapping[str, str]) -> Finding:
    """Is the server one that dtimer is made for."""
    text = info.get("redis_version", "")
    name = info.get("server_name", "redis")
    told = f"{name} {info.get(f'{name}_version', text)}"
    if name != "redis":
        told += f", which does as Redis {text}"
    numbers = tuple(int(n) for n in text.split(".")[:2] if n.isdigit())
    if len(numbers) < 2:
        return warning("version", f"{text!r} cannot be read", "dtimer is made for 6.2 and later")
    if numbers < OLDEST:
        return error("version", f"{told} is too old", "upgrade it to 6.2 or later")
    return ok("version", told)


def role(info: Mapping[str, str]) -> Finding:
    """May it be written to."""
    if info.get("role", "master") != "master":
        master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return error(
            "role", "this is a replica, which takes no posts", f"connect to its master, {master}"
        )
    if info.get("cluster_enabled") == "1":
        return warning(
            "role",
            "this is one server of a cluster",
            "programs have to give DTimer a RedisCluster client; this command reaches only the"
            " namespaces of this one server",
        )
    replicas = info.get("connected_slaves", "0")
    return ok("role", f"master, with {replicas} replicas")


def persistence(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Finding]:
    """What is left after a crash: *settings* are those of CONFIG, as far as they may be read."""
    check = "persistence"
    if "aof_enabled" not in info:
        yield warning(check, "the server does not say", "see that it has appendonly yes")
        return
    if info["aof_enabled"] == "1":
        if info.get("aof_last_write_status", "ok") != "ok":
            yield error(
                check, "the append-only file cannot be written", "look at the server's disk"
            )
            return
        every = settings.get("appendfsync", "everysec")
        if every == "no":
            yield warning(
                check,
                "append-only file, fsync when the system likes",
                "CONFIG SET appendfsync everysec: a crash of the machine then costs one second",
            )
            return
        cost = "nothing" if every == "always" else "up to a second of posts"
        yield ok(check, f"append-only file, fsync {every}: a crash of the machine costs {cost}")
        return
    remedy = "CONFIG SET appendonly yes, and the same in its configuration file"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield error(check, "the last snapshot failed, and there is no append-only file", remedy)
    elif settings.get("save", "?") == "":
        yield warning(check, "none: a restart of the server loses every event", remedy)
    else:
        when = f" (save {settings['save']})" if settings.get("save") else ""
        yield warning(
            check, f"snapshots alone{when}: a crash loses what was posted since the last", remedy
        )


def memory(info: Mapping[str, str]) -> Finding:
    """Will it keep what it is given."""
    policy = info.get("maxmemory_policy", "noeviction")
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if policy.startswith("allkeys"):
        found = error if limit else warning
        bounded = "when its memory is full" if limit else "once it is given a maxmemory"
        return found(
            "eviction",
            f"maxmemory-policy {policy}: {bounded} it may evict all events at once",
            "CONFIG SET maxmemory-policy noeviction",
        )
    if limit and used > 0.9 * limit:
        return warning(
            "eviction",
            f"{policy}, and {used / limit:.0%} of its memory is used: soon it refuses posts",
            "raise maxmemory, or post less far ahead",
        )
    full = f"{used / limit:.0%} of its memory is used" if limit else "no limit of memory"
    return ok("eviction", f"{policy}, {full}")
