"""The data model: events, options, schedules and times. No I/O, no threads and no clock."""
