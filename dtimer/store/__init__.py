"""The wing that knows Redis, and knows no threads: each change of state is one script."""
