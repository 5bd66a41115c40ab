"""Programs that break things on purpose, and check the recorded history for the promises."""
