"""The wing that knows threads, and knows no Redis: it asks for turns, and has hands."""
