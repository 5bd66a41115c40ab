"""Tests that inject one fault of the catalogue each, and assert what every node must do."""
