"""``dtimer top``: shows a namespace on one screen, updated once a second."""
