"""The checks of the server that read only its INFO, without I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dtimer.monitor.findings import Finding, error, ok, warning

OLDEST = (6, 2)


def version(info: Mapping[str, str]) -> Finding:
    """Check that dtimer supports the server's version."""
    text = info.get("redis_version", "")
    name = info.get("server_name", "redis")
    name_and_version = f"{name} {info.get(f'{name}_version', text)}"
    if name != "redis":
        name_and_version += f", compatible with Redis {text}"
    numbers = tuple(int(n) for n in text.split(".")[:2] if n.isdigit())
    if len(numbers) < 2:
        return warning("version", f"{text!r} cannot be read", "dtimer supports 6.2 and later")
    if numbers < OLDEST:
        return error("version", f"{name_and_version} is too old", "upgrade it to 6.2 or later")
    return ok("version", name_and_version)


def role(info: Mapping[str, str]) -> Finding:
    """Check that the server accepts writes."""
    if info.get("role", "master") != "master":
        master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return error(
            "role", "this is a replica, which refuses posts", f"connect to its master, {master}"
        )
    if info.get("cluster_enabled") == "1":
        return warning(
            "role",
            "this is one server of a cluster",
            "programs must give DTimer a RedisCluster client; this command reaches only the"
            " namespaces of this server",
        )
    replicas = info.get("connected_slaves", "0")
    return ok("role", f"master, with {replicas} replicas")


def persistence(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Finding]:
    """Check what survives a crash. *settings* are those of CONFIG that this client may read."""
    check = "persistence"
    if "aof_enabled" not in info:
        yield warning(check, "the server does not report it", "make sure of appendonly yes")
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
                "append-only file, fsync when the operating system decides",
                "CONFIG SET appendfsync everysec: a crash of the machine then costs one second",
            )
            return
        cost = "nothing" if every == "always" else "up to a second of posts"
        yield ok(check, f"append-only file, fsync {every}: a crash of the machine costs {cost}")
        return
    remedy = "CONFIG SET appendonly yes, and the same in its configuration file"
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield error(check, "the last snapshot failed, and the append-only file is off", remedy)
    elif settings.get("save", "?") == "":
        yield warning(check, "none: a restart of the server loses every event", remedy)
    else:
        when = f" (save {settings['save']})" if settings.get("save") else ""
        yield warning(
            check, f"snapshots only{when}: a crash loses the posts since the last one", remedy
        )


def memory(info: Mapping[str, str]) -> Finding:
    """Check the eviction policy and the memory."""
    policy = info.get("maxmemory_policy", "noeviction")
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if policy.startswith("allkeys"):
        finding = error if limit else warning
        bounded = "when its memory is full" if limit else "if a maxmemory is set"
        return finding(
            "eviction",
            f"maxmemory-policy {policy}: {bounded} it may evict all events at once",
            "CONFIG SET maxmemory-policy noeviction",
        )
    if limit and used > 0.9 * limit:
        return warning(
            "eviction",
            f"{policy}, and {used / limit:.0%} of its memory is used: it will soon refuse posts",
            "raise maxmemory, or post less far ahead",
        )
    full = f"{used / limit:.0%} of its memory is used" if limit else "no memory limit"
    return ok("eviction", f"{policy}, {full}")
