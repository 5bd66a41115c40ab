"""The layer that has threads and knows nothing of Redis: it claims events and runs handlers."""
