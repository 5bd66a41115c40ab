"""The peers that run on Node."""

from __future__ import annotations

from benchmarks.contenders.contender import DEFAULTS, TUNED, Contender

NODE = (
    Contender(
        "npm dtimer",
        DEFAULTS,
        "npm-dtimer",
        "drive_npm_dtimer.js",
        "dtimer",
        says="maxRetries 0: deleted when delivered, at most once; maxEvents 8",
        max_pending=1_000_000,
    ),
    Contender(
        "npm dtimer",
        TUNED,
        "npm-dtimer",
        "drive_npm_dtimer.js",
        "dtimer",
        says="maxRetries 1 and confirm(), so leased; maxEvents 1000, or the batch given",
        options={"maxRetries": 1, "maxEvents": 1000},
        max_pending=1_000_000,
        batches=(100, 1000),
    ),
    Contender(
        "runat loop",
        DEFAULTS,
        "runat-loop",
        "drive_runat_loop.js",
        "redis",
        says="in place of runat, which left the registry: polls every 100 ms, at most once",
        options={"interval": 100},
        max_pending=1_000_000,
    ),
    Contender(
        "runat loop",
        TUNED,
        "runat-loop",
        "drive_runat_loop.js",
        "redis",
        says="polls every 10 ms, at most once",
        options={"interval": 10},
        max_pending=1_000_000,
    ),
    Contender(
        "BullMQ",
        DEFAULTS,
        "bullmq",
        "drive_bullmq.js",
        "bullmq",
        says="concurrency 1, keeps completed jobs",
        events={"drain": 5_000, "recovery": 10_000},
        max_pending=1_000_000,
    ),
    Contender(
        "BullMQ",
        TUNED,
        "bullmq",
        "drive_bullmq.js",
        "bullmq",
        says="concurrency 50, removeOnComplete",
        options={"concurrency": 50, "removeOnComplete": True},
        max_pending=1_000_000,
    ),
)
