"""``dtimer export`` and ``dtimer import``: copy a namespace as JSON lines, in constant memory."""
