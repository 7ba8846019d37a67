"""Arguments and options that several commands share, each with its help and its completion."""

from __future__ import annotations

from typing import Annotated

import typer

from insula.cli import completion

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Qube = Annotated[str, typer.Argument(metavar="QUBE", help="Name of the qube.", autocompletion=completion.qubes)]
Qubes = Annotated[list[str], typer.Argument(metavar="QUBE…", help="Names of qubes.", autocompletion=completion.qubes)]
SomeQubes = Annotated[
    list[str] | None, typer.Argument(metavar="[QUBE…]", help="Names of qubes.", autocompletion=completion.qubes)
]
Volume = Annotated[
    str,
    typer.Argument(metavar="VOLUME", help="root, private, volatile or kernel.", autocompletion=completion.volumes),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
