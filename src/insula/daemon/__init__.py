"""Processes: entry points and wiring."""
