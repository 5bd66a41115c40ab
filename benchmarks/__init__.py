"""
Measurements, each a program: ``python -m benchmarks.lateness``, ``posting``, ``drain``, ``idle``.

``python -m benchmarks`` runs them all. Each starts a server of its own, the same that an
embedded store runs (``--url`` names another), prints a table, and with ``--json`` its
figures as one JSON object besides the machine and the versions that they are of.

A machine that does other things too gives other figures from one minute to the next. So
what is to be compared is measured in turns within one run, and the ratio is the result:
the bare call of redis-py, which is the floor of anything that asks Redis once an event.
"""
