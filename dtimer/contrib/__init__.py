"""Small helpers for other libraries. Each module needs only the library that it is for."""
