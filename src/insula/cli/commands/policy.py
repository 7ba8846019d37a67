"""``insula policy``: what the rules say, whether they are right, what they add up to; and changing them.

Files are read and written in the daemon's policy folder itself, by :class:`~insula.policy.store.PolicyStore`, which
locks it and checks every change; a daemon that runs sees the new version with the next call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output, policy_editing
from insula.cli.connection import with_daemon
from insula.cli.failures import REFUSED, USAGE, CliError
from insula.cli.options import Json, Yes
from insula.cli.policy_editing import PolicyFile
from insula.cli.table import Column
from insula.cli.text import visible, visible_bytes
from insula.daemon.paths import Paths
from insula.policy.decisions import Allow, Ask, Decision, Deny, Request
from insula.policy.disk import MAX_FILE_BYTES
from insula.policy.engine import Explanation, explain
from insula.policy.errors import PolicyAdminException, PolicyAdminTokenException
from insula.policy.evaluate import decision_to_json, snapshot_from_json
from insula.policy.graph import Edge, calls_of, dot, edges
from insula.policy.rules import ANY, Rule
from insula.policy.ruleset import Policy
from insula.policy.snapshot import Snapshot
from insula.policy.store import NEW_TOKEN, PolicyStore

app = typer.Typer(add_completion=False, help="Rules: which qube may call which service of which other qube.")

Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="FOLDER", help="Policy files elsewhere than the system's.", file_okay=False),
]

OWN_FILE = "30-user"
"""Where rules of the user's own go, before those of the system."""


def _file_names(incomplete: str) -> list[str]:
    """Completion."""
    try:
        return [name for name in _store(None).names() if name.startswith(incomplete)]
    except PolicyAdminException:
        return []


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A file of the policy, without .policy.", autocompletion=_file_names),
]
Include = Annotated[bool, typer.Option("--include", help="A file of the folder include/.")]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="The version that this is based on, as `get --json` tells it; `any` for whatever is there.",
    ),
]


@app.command("check")
def check(folder: Folder = None, as_json: Json = False) -> None:
    """Read the policy and list every problem with file and line. A policy with a problem denies everything."""
    policy = _load(folder)
    if as_json:
        output.print_json({"ok": not policy.problems, "problems": list(map(str, policy.problems))})
    else:
        for problem in policy.problems:
            output.print_line(str(problem))
    if policy.problems:
        raise CliError(f"{_counted(len(policy.problems), 'problem')}: every call is denied until this is repaired")
    if not as_json:
        output.print_line(f"{_counted(len(policy.rules), 'rule')} in {_counted(len(policy.files), 'file')}, no problem")


@app.command("list")
def list_(
    service: Annotated[str | None, typer.Argument(metavar="[SERVICE]", help="Only rules for this service.")] = None,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Print the rules in the order they are tried, each with its file and line."""
    rules = [rule for rule in _valid(folder).rules if service is None or rule.service in (ANY, service)]
    if as_json:
        output.print_json([_rule_as_object(rule) for rule in rules])
    else:
        output.print_table([Column("WHERE"), Column("RULE")], [[str(rule.location), str(rule)] for rule in rules])


@app.command("eval")
def eval_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Who calls.", autocompletion=completion.qubes)],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Whom: a qube, @default, @dispvm…", autocompletion=completion.qubes)
    ],
    call: Annotated[str, typer.Argument(metavar="CALL", help="What: SERVICE or SERVICE+ARGUMENT.")],
    is_explained: Annotated[bool, typer.Option("--explain", help="Show every rule and what became of it.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Say what becomes of a call, and which rule decides it. Nothing is called."""
    policy = _load(folder)
    snapshot = _snapshot()
    service, plus, argument = call.partition("+")
    explanation = explain(Request(service, "+" + argument if plus else "+", source, target), policy, snapshot)
    if as_json:
        answer: dict[str, object] = decision_to_json(explanation.decision, snapshot)
        if is_explained:
            answer["considered"] = _considered(explanation)
        output.print_json(answer)
        return
    for line in _told(explanation.decision):
        output.print_line(line)
    if is_explained:
        rows = [[entry["where"], entry["rule"], entry["outcome"]] for entry in _considered(explanation)]
        output.print_table([Column("WHERE"), Column("RULE"), Column("OUTCOME")], rows)


@app.command("graph")
def graph(
    services: Annotated[
        list[str] | None, typer.Argument(metavar="[SERVICE…]", help="Only these; else all that rules name.")
    ] = None,
    as_dot: Annotated[bool, typer.Option("--dot", help="Print a graph for Graphviz.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Ask the policy about every pair of qubes and list the calls that are not denied."""
    policy = _valid(folder)
    found = edges(policy, _snapshot(), calls_of(policy, services or ()))
    if as_dot:
        output.print_text(dot(found))
    elif as_json:
        output.print_json([_edge_as_object(edge) for edge in found])
    else:
        output.print_table(
            [Column("SERVICE"), Column("SOURCE"), Column("TARGET"), Column("ACTION"), Column("WHERE")],
            [[edge.service + edge.argument, edge.source, edge.target, edge.action, str(edge.where)] for edge in found],
        )


@app.command("edit")
def edit(
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", help="A file of the policy, without .policy.", autocompletion=_file_names),
    ] = OWN_FILE,
    include: Include = False,
    folder: Folder = None,
) -> None:
    """Edit a file of the policy in $EDITOR. It is checked before it is saved; a mistake is told with its line."""
    file = PolicyFile(_existing(folder), name, include)
    is_asking = output.is_terminal(sys.stdin)
    is_saved = policy_editing.edit(
        file, output.say, lambda: is_asking and typer.confirm("Edit again?", default=True, err=True)
    )
    output.print_line(f"{name}: {'saved' if is_saved else 'nothing was changed'}")


@app.command("get")
def get(name: Name, include: Include = False, folder: Folder = None, as_json: Json = False) -> None:
    """Print a file of the policy; with --json also the token of its version."""
    token, content = _existing(folder).get(name, include=include)
    if as_json:
        output.print_json({"name": name, "token": token, "content": content.decode("utf-8", "backslashreplace")})
    else:
        output.print_text(visible_bytes(content))


@app.command("replace")
def replace(
    name: Name,
    source: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="The new content; - or nothing: standard input.", allow_dash=True)
    ] = Path("-"),
    token: Token = None,
    include: Include = False,
    folder: Folder = None,
) -> None:
    """Replace a file of the policy, or make one, if the whole policy is valid then. One that is there needs --token."""
    if str(source) == "-":
        content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with source.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    try:
        _existing(folder).replace(name, content, token or NEW_TOKEN, include=include)
    except PolicyAdminTokenException as error:
        hint = f"insula policy get {name} --json tells the token of its version; --token any replaces whatever is there"
        raise CliError(str(error), hint=hint) from error
    output.print_line(f"{name}: saved")


@app.command("remove")
def remove(name: Name, yes: Yes = False, include: Include = False, folder: Folder = None) -> None:
    """Remove a file of the policy, if the rest is valid without it."""
    store = _existing(folder)
    token, _ = store.get(name, include=include)
    if not yes:
        if not (output.is_terminal(sys.stdin) and output.is_terminal(sys.stderr)):
            raise CliError("removing needs a yes and there is no terminal to ask", hint="--yes", exit_code=USAGE)
        if not typer.confirm(f"Remove {visible(name)} from the policy?", err=True):
            output.say("nothing was removed")
            raise typer.Exit(REFUSED)
    # Of the version that was there when the question was asked.
    store.remove(name, token, include=include)
    output.print_line(f"{name}: removed")


def _existing(folder: Path | None) -> PolicyStore:
    """:raise CliError: a new installation has no policy until its daemon was started."""
    store = _store(folder)
    if not store.folder.exists():
        raise CliError(f"there is no policy folder {store.folder}", hint="insula ls starts the daemon, which makes it")
    return store


def _store(folder: Path | None) -> PolicyStore:
    return PolicyStore(Paths.from_environment().policy if folder is None else folder)


def _load(folder: Path | None) -> Policy:
    return _store(folder).load()


def _valid(folder: Path | None) -> Policy:
    policy = _load(folder)
    if policy.problems:
        raise CliError(f"the policy has problems, the first: {policy.problems[0]}", hint="insula policy check")
    return policy


def _snapshot() -> Snapshot:
    """Facts about the qubes, from the daemon."""

    async def ask(_: AdminClient) -> bytes:
        return await AdminClient(Paths.from_environment().internal_socket).call("internal.GetSystemInfo")

    return snapshot_from_json(json.loads(with_daemon(ask)))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _told(decision: Decision) -> list[str]:
    where = "" if decision.where is None else f" ({decision.where})"
    match decision:
        case Allow():
            user = "" if decision.user is None else f" as {decision.user}"
            return [f"allow: {decision.target}{user}{where}", *([decision.objection] if decision.objection else [])]
        case Ask():
            return [
                f"ask: {', '.join(decision.targets)}{where}",
                *([f"offered first: {decision.default_target}"] if decision.default_target else []),
            ]
        case Deny():
            return [f"deny: {decision.reason.value}{where}", *map(str, decision.problems)]


def _considered(explanation: Explanation) -> list[dict[str, str]]:
    return [
        {
            "where": str(entry.rule.location),
            "rule": str(entry.rule),
            "outcome": "decides" if entry.miss is None else entry.miss.value,
        }
        for entry in explanation.considered
    ]


def _rule_as_object(rule: Rule) -> dict[str, str]:
    return {
        "where": rule.location.full,
        "service": rule.service,
        "argument": rule.argument,
        "source": rule.source.text,
        "target": rule.target.text,
        "action": rule.action.value,
        "rule": str(rule),
    }


def _edge_as_object(edge: Edge) -> dict[str, str]:
    return {
        "service": edge.service,
        "argument": edge.argument,
        "source": edge.source,
        "target": edge.target,
        "action": edge.action.value,
        "where": str(edge.where),
    }
