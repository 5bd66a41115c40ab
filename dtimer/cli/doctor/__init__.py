"""``dtimer doctor``: what is wrong with a server or a namespace, and what to do about it."""
