"""One module a command, each with a Typer object ``app``; loaded when used (:mod:`insula.cli.catalogue`)."""
