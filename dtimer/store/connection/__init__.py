"""Connections to Redis: where they come from, and how one keeps a deadline."""
