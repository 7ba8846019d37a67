"""``insula calls``: what qubes asked of one another and of this machine, and what became of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from insula.cli import completion, output
from insula.cli.text import seconds_text, size_text
from insula.daemon.paths import Paths
from insula.rpc.call_log import LogReader

POLL_S = 0.2
"""How often the file is looked at by --follow."""
SHOWN = 40
"""Calls shown when nobody says how many."""

app = typer.Typer(add_completion=False)

Record = Mapping[str, object]


@dataclass(frozen=True)
class Wanted:
    qube: str | None
    service: str | None
    refused_only: bool

    def has(self, record: Record) -> bool:
        if self.qube is not None and self.qube not in (record["caller"], record["server"], record["target"]):
            return False
        if self.service is not None and record["service"] != self.service:
            return False
        return not self.refused_only or record["decision"] != "allowed"


@app.command()
def calls(
    qube: Annotated[
        str | None,
        typer.Argument(metavar="QUBE", help="Only calls of it or to it.", autocompletion=completion.qubes),
    ] = None,
    service: Annotated[str | None, typer.Option("--service", "-s", help="Only calls of this service.")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only those that were not allowed.")] = False,
    number: Annotated[int, typer.Option("--last", "-n", min=0, metavar="N", help="How many of the past.")] = SHOWN,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each call as it ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line.")] = False,
) -> None:
    """Show the log of calls between qubes: who, what, of whom, decided how and by which rule. Never what was said."""
    wanted = Wanted(qube, service, refused)
    reader = LogReader(Paths.from_environment().calls_log)
    past: deque[Record] = deque((record for record in reader.read() if wanted.has(record)), maxlen=number)
    for record in past:
        show(record, as_json=as_json)
    output.flush()
    while follow:
        time.sleep(POLL_S)
        for record in reader.read():
            if wanted.has(record):
                show(record, as_json=as_json)
        output.flush()


def show(record: Record, *, as_json: bool) -> None:
    if as_json:
        output.print_json_line(record)
    else:
        output.print_line(line_of(record))


def line_of(record: Record) -> str:
    """One line: when, who, what, of whom, what became of it and why, how long and how much."""
    clock = time.strftime("%m-%d %H:%M:%S", time.localtime(_number(record, "began")))
    argument = str(record["argument"])
    call = f"{record['service']}{argument if argument != '+' else ''}"
    named, server = str(record["target"]) or "@default", str(record["server"])
    where = named if server in ("", named) else f"{named} = {server}"
    return f"{clock}  {record['caller']} → {where}  {call}  {', '.join(_outcome(record))}"


def _outcome(record: Record) -> Iterator[str]:
    decision = str(record["decision"])
    yield f"{decision} by the user" if record["asked"] and decision in ("allowed", "denied") else decision
    if record["reason"]:
        yield str(record["reason"])
    if record["rule"]:
        yield str(record["rule"])
    if decision == "allowed":
        yield seconds_text(_number(record, "ended_after_s"))
        sent = int(_number(record, "from_caller") + _number(record, "to_caller"))
        yield size_text(sent)


def _number(record: Record, name: str) -> float:
    value = record[name]
    return float(value) if isinstance(value, int | float) else 0.0
