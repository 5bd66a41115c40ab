"""Faults injected on purpose, and what is recorded meanwhile checked against the promises."""
