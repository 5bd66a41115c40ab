"""``dtimer export`` and ``dtimer import``: a namespace as JSON lines, in flat memory."""
