"""
``dtimer demo``: the main job made visible, with nothing in it simulated.

The parent posts events and starts three node processes (``node``), each of which writes
what its handler does to a pipe. All that is shown is counted from these reports
(``tally``), and checked in the end against what Redis counted.
"""
