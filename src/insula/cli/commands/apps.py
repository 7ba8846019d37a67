"""``insula apps``: the applications of a qube, as it told them."""

from __future__ import annotations

import typer

from insula.cli import output
from insula.cli.connection import with_daemon
from insula.cli.options import Json, Qube
from insula.cli.table import Column

app = typer.Typer(add_completion=False)


@app.command()
def apps(qube: Qube, as_json: Json = False) -> None:
    """List the applications of a qube and its template. `insula run --service qubes.StartApp+ID QUBE` starts one."""
    found = with_daemon(lambda client: client.applications(qube))
    if as_json:
        output.print_json(found)
        return
    if not found:
        output.say(f"{qube} has told of no applications; a template does when its packages change (insula update)")
    rows = [[item["id"], item["name"], " ".join(item["categories"])] for item in found]
    output.print_table([Column("ID"), Column("NAME"), Column("CATEGORIES")], rows)
