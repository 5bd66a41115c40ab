"""The layer that knows Redis but starts no threads: each change of state is one script."""
