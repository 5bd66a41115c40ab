"""Runs all measurements, one after the other."""

from __future__ import annotations

from benchmarks import drain, idle, lateness, posting

if __name__ == "__main__":
    for module in (lateness, posting, drain, idle):
        module.main()
        print()
