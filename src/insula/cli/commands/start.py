"""``insula start``: start qubes, or say what starting them would do."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from insula.admin.client import AdminClient, MalformedAnswer
from insula.cli import output
from insula.cli.batch import Words, run_on
from insula.cli.connection import with_daemon
from insula.cli.failures import USAGE, CliError
from insula.cli.options import Json, Qubes
from insula.cli.qubes import find_qube
from insula.cli.step import Step
from insula.model.desktop import desktop_of

app = typer.Typer(add_completion=False)


@app.command()
def start(
    qubes: Qubes,
    plan: Annotated[bool, typer.Option("--plan", help="Only print the steps, start nothing.")] = False,
    show: Annotated[
        bool,
        typer.Option("--show", help="Show its windows on your desktop; of a system without agent, its screen."),
    ] = False,
    cdrom: Annotated[
        str | None,
        typer.Option(
            "--cdrom",
            metavar="IMAGE",
            help="Boot it from this CD, a file here or QUBE:PATH: a qube that has no kernel.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start qubes, several at once, and wait until they answer."""
    if cdrom is not None:
        if plan or len(qubes) != 1:
            raise CliError("--cdrom is for one qube, and not for a plan", exit_code=USAGE)
        from insula.cli.cd import start_from_cd  # noqa: PLC0415 - with what copies files, which other starts are without

        start_from_cd(qubes[0], cdrom, show=show)
    elif plan:
        show_plans(qubes, as_json=as_json)
    else:
        run_on(qubes, Words("starting", "started"), start_and_show if show else start_one, as_json=as_json)


async def start_one(client: AdminClient, name: str, step: Step) -> None:
    row = await find_qube(client, name)
    if row.state == "Running":
        step.note = "was running already"
    await client.start(name)


async def start_and_show(client: AdminClient, name: str, step: Step) -> None:
    await start_one(client, name, step)
    await client.show_windows(name, desktop_of(os.environ))


def show_plans(qubes: list[str], *, as_json: bool) -> None:
    async def work(client: AdminClient) -> dict[str, list[str]]:
        return {name: parse_plan(await client.call("insula.vm.StartPlan", name)) for name in qubes}

    plans = with_daemon(work)
    if as_json:
        output.print_json(plans)
        return
    for name, lines in plans.items():
        output.print_line(f"{name}:")
        for number, line in enumerate(lines, 1):
            output.print_line(f"  {number}. {line}")


def parse_plan(untrusted_answer: bytes) -> list[str]:
    """:raise MalformedAnswer: not a JSON list of texts."""
    try:
        lines = json.loads(untrusted_answer)
    except ValueError as error:
        raise MalformedAnswer("insula.vm.StartPlan did not answer JSON") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise MalformedAnswer("insula.vm.StartPlan did not answer a list of texts")
    return lines
