"""
``dtimer demo``: shows dtimer at work. Nothing is simulated.

Three node processes (``node``) report through pipes what their handlers do. The demo counts these
reports, and compares the counts with those of Redis at the end.
"""
