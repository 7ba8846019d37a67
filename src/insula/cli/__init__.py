"""The ``insula`` command: one file per command, parsing and printing only."""
