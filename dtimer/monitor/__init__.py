"""
Read the state of a namespace and its server for operators, and judge it.

Shows and prints nothing: the command line does, and so can a dashboard or an exporter.
"""
