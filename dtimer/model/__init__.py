"""What an event is, and what may be said of it: pure, no I/O, no threads, no clock."""
