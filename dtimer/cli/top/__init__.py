"""``dtimer top``: a namespace on one screen, once a second."""
