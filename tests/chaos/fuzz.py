"""
Fuzz all decoders of bytes from Redis or from a file, guided by coverage.

    python tests/chaos/fuzz.py SECONDS [SEED]        (or: make fuzz SECONDS=300)

Needs the extra ``fuzz``. The first byte of an input selects the decoder (tests/decoders.py), which
receives the rest. If a decoder raises an undocumented exception or takes too long, the run ends,
and the input is written to a file. Add that input to the corpus of tests/unit/test_decoders.py.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["dtimer", "json"]):
    import decoders

NAMES = sorted(decoders.ALL)

#: The longest time in seconds for one input. The instrumented code is about ten times slower.
LONGEST = 10.0


def one(data: bytes) -> None:
    """Decode one input, and raise if the decoder fails or takes too long."""
    if not data:
        return
    name = NAMES[data[0] % len(NAMES)]
    began = time.monotonic()
    try:
        decoders.decode_or_refuse(name, data[1:])
    except BaseException:
        sys.stderr.write(f"decoder {name!r}, bytes {data[1:]!r}\n")
        raise
    if time.monotonic() - began > LONGEST:
        raise TimeoutError(f"decoder {name!r} took too long for {data[1:]!r}")


def main() -> None:
    """Fuzz for the seconds, and with the seed, of the command line."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    seed = sys.argv[2] if len(sys.argv) > 2 else str(time.time_ns() % 2**31)
    sys.stderr.write(f"replay with: python tests/chaos/fuzz.py {seconds} {seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(NAMES):
            (Path(folder) / name).write_bytes(bytes([i]) + decoders.GOOD[name])
        flags = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            "-max_len=4096",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={Path.cwd()}/fuzz-",
            "-print_final_stats=1",
            "-verbosity=0",
        ]
        atheris.Setup([sys.argv[0], *flags, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
