"""
``dtimer demo``: shows dtimer at work. Nothing is simulated.

The parent posts events and starts three node processes (``node``). Each of them reports through
a pipe what its handler does. The demo counts these reports, and compares the counts
with those of Redis at the end.
"""
