"""``insula firewall``: what a qube may reach; its net qube carries the rules out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import output
from insula.cli.connection import with_daemon
from insula.cli.failures import REFUSED, CliError
from insula.cli.options import Json, Qube
from insula.cli.table import Column
from insula.model.qube import DEFAULT_FIREWALL
from insula_proto.firewall import FirewallError, Rule, format_rule, format_rules, parse_rule, parse_rules

NOTHING = "-"
EXAMPLE = "for example 'action=accept proto=tcp dsthost=debian.org dstports=443'"

app = typer.Typer(add_completion=False)


@app.command()
def firewall(
    qube: Qube,
    add: Annotated[
        list[str] | None,
        typer.Option("--add", "-a", metavar="RULE", help=f"At the end, or at --at; may be repeated; {EXAMPLE}."),
    ] = None,
    at: Annotated[int | None, typer.Option(help="Number that the first added rule gets.", min=0)] = None,
    remove: Annotated[
        list[int] | None, typer.Option("--remove", "-D", metavar="NO", help="Number of a rule; may be repeated.", min=0)
    ] = None,
    replace: Annotated[
        str | None, typer.Option(metavar="FILE", help="All rules, one a line; - is standard input.")
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Back to one rule that accepts everything.")] = False,
    as_json: Json = False,
) -> None:
    """Show or change the rules of a qube. The first that fits decides; what none fits is refused."""
    if sum(map(bool, (add or remove, replace is not None, reset))) > 1:
        raise CliError("--replace and --reset go with no other change", exit_code=REFUSED)
    if replace is not None:
        text = sys.stdin.read() if replace == "-" else Path(replace).read_text(encoding="utf-8")
        rules = [*_parsed(text)]
        with_daemon(lambda client: store(client, qube, rules))
    elif reset:
        with_daemon(lambda client: store(client, qube, [*DEFAULT_FIREWALL]))
    elif add or remove:
        added = [_one(line) for line in add or []]
        with_daemon(lambda client: change(client, qube, added, at, remove or []))
    else:
        _show(with_daemon(lambda client: load(client, qube)), as_json=as_json)


def _one(line: str) -> Rule:
    try:
        return parse_rule(line)
    except FirewallError as error:
        raise CliError(f"{line!a} is no rule: {error}", hint=EXAMPLE, exit_code=REFUSED) from error


def _parsed(text: str) -> list[Rule]:
    try:
        return parse_rules(text)
    except FirewallError as error:
        raise CliError(str(error), hint=EXAMPLE, exit_code=REFUSED) from error


async def load(client: AdminClient, qube: str) -> list[Rule]:
    return parse_rules((await client.call("admin.vm.firewall.Get", qube)).decode("ascii"))


async def store(client: AdminClient, qube: str, rules: list[Rule]) -> None:
    # The call takes no empty payload; an empty line is no rule.
    await client.call("admin.vm.firewall.Set", qube, payload=format_rules(rules).encode("ascii") or b"\n")


async def change(client: AdminClient, qube: str, added: list[Rule], at: int | None, removed: list[int]) -> None:
    rules = await load(client, qube)
    for number in removed:
        if number >= len(rules):
            hint = f"insula firewall {qube} lists them"
            raise CliError(f"{qube} has no rule {number}", hint=hint, exit_code=REFUSED)
    kept = [rule for number, rule in enumerate(rules) if number not in removed]
    place = len(kept) if at is None else min(at, len(kept))
    await store(client, qube, [*kept[:place], *added, *kept[place:]])


def _show(rules: list[Rule], *, as_json: bool) -> None:
    if as_json:
        output.print_json([{"number": number, "rule": format_rule(rule)} for number, rule in enumerate(rules)])
        return
    columns = [Column("NO", right=True), *(Column(name) for name in ("ACTION", "TO", "WHAT", "EXPIRES", "COMMENT"))]
    output.print_table(columns, [[str(number), *_cells(rule)] for number, rule in enumerate(rules)])


def _cells(rule: Rule) -> list[str]:
    what = [word for word in (rule.service.protocol, _range(rule), _icmp(rule)) if word]
    target = "the name servers" if rule.special else "anything"
    return [
        rule.action,
        target if rule.target is None else rule.target.text,
        " ".join(what) or "anything",
        NOTHING if rule.expire is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(rule.expire)),
        rule.comment or NOTHING,
    ]


def _range(rule: Rule) -> str:
    if rule.service.ports is None:
        return ""
    first, last = rule.service.ports
    return f"port {first}" if first == last else f"ports {first} to {last}"


def _icmp(rule: Rule) -> str:
    return "" if rule.service.icmp_type is None else f"type {rule.service.icmp_type}"
