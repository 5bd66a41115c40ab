"""``dtimer doctor``: finds problems of a server or a namespace, and says what to do."""
