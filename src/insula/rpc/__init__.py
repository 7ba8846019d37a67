"""Calls into qubes: the session process per qube and the caller's end."""
