"""
Measure dtimer next to its peers, and next to the least that the machine allows.

``python -m benchmarks run`` makes the contenders' environments and gives each contender the same
workloads, on one real server, in interleaved rounds. It prints one table for each workload.
`benchmarks.contenders` lists who takes part, `benchmarks.workloads` what is measured,
`benchmarks.peers` has the programs that run, and `benchmarks.numbers` the arithmetic.
"""
