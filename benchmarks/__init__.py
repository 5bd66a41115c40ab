"""
Measures dtimer beside its peers, and beside the least that the machine allows.

``python -m benchmarks run`` makes the contenders' environments, gives each the same works
on one real server, in interleaved rounds, and prints a table a work. `benchmarks.contenders`
says who takes part, `benchmarks.works` what they are given to do, `benchmarks.peers` holds
the programs that do it, `benchmarks.figures` the arithmetic.
"""
