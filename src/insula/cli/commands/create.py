"""``insula create``: make a qube, completely or not at all."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from insula.admin.client import AdminClient
from insula.cli import completion, output
from insula.cli.commands.firewall import store
from insula.cli.connection import with_daemon_and_board
from insula.cli.failures import USAGE, CliError, did_you_mean
from insula.cli.options import Json
from insula.cli.progress import Board
from insula.cli.undo import removed_on_failure
from insula.model.errors import InsulaError, QubesNoSuchPropertyError
from insula.model.klass import Klass
from insula.model.roles import ROLES, VPN_SERVICE, Role
from insula_proto.firewall import FirewallError, Rule, parse_rule

WITHOUT_TEMPLATE = frozenset(str(klass) for klass in Klass if not klass.has_template)

app = typer.Typer(add_completion=False)


@app.command()
def create(  # noqa: PLR0913, PLR0917 - its options
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new qube.")],
    label: Annotated[
        str | None,
        typer.Option("--label", "-l", help="Colour: how much you trust it.", autocompletion=completion.labels),
    ] = None,
    klass: Annotated[
        str,
        typer.Option("--class", "-C", metavar="CLASS", help="Class of the qube.", autocompletion=completion.classes),
    ] = "AppVM",
    template: Annotated[
        str | None,
        typer.Option("--template", "-t", help="Template; without: the default one.", autocompletion=completion.qubes),
    ] = None,
    prop: Annotated[
        list[str] | None, typer.Option("--prop", metavar="NAME=VALUE", help="Set a property; may be repeated.")
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option("--pool", metavar="POOL|VOLUME=POOL", help="Where its volumes are kept; may be repeated."),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(metavar="ROLE", help=f"What it is for: {', '.join(ROLES)}.", autocompletion=roles),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--endpoint",
            metavar="PROTOCOL:ADDRESS:PORT",
            help="For a VPN: the tunnel's other end, all that its net qube lets it reach; may be repeated.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a qube. If a property is refused, the qube is removed again."""
    properties = assignments(prop or [], "--prop")
    chosen = find_role(role, properties)
    rules = [endpoint_rule(word) for word in endpoint or []]
    if rules and (chosen is None or VPN_SERVICE not in chosen.features):
        raise CliError("--endpoint goes with --role vpn", exit_code=USAGE)
    if label is None and chosen is None:
        raise CliError("give it a colour: --label LABEL", hint="insula label lists them", exit_code=USAGE)
    colour = label if label is not None or chosen is None else chosen.label
    assert colour is not None
    everywhere, pools = parse_pools(pool or [])
    if template is not None and klass in WITHOUT_TEMPLATE:
        raise CliError(
            f"a {klass} has no template", hint=f"insula clone {template} {name} --class {klass}", exit_code=USAGE
        )

    async def work(client: AdminClient, board: Board) -> None:
        with board.step(name, "creating", "created"):
            await client.create_qube(klass, name, colour, template=template, pool=everywhere, pools=pools or None)
            async with removed_on_failure(client, name):
                if chosen is not None:
                    await take_role(client, name, chosen, properties)
                for key, value in properties.items():
                    await set_new_property(client, name, key, value)
                if rules:
                    await store(client, name, rules)

    with_daemon_and_board(work)
    if as_json:
        output.print_json({"name": name, "class": klass, "label": colour})


def roles(incomplete: str) -> list[str]:
    """Names for completion."""
    return [name for name in ROLES if name.startswith(incomplete)]


def find_role(name: str | None, properties: Mapping[str, str]) -> Role | None:
    """:raise CliError: usage."""
    if name is None:
        return None
    if name not in ROLES:
        hint = did_you_mean(name, list(ROLES)) or f"there are: {', '.join(ROLES)}"
        raise CliError(f"there is no role {name!a}", hint=hint, exit_code=USAGE)
    role = ROLES[name]
    if role.needs_netvm and "netvm" not in properties:
        raise CliError(f"say which Tor gateway a {name} goes through", hint="--prop netvm=sys-whonix", exit_code=USAGE)
    return role


def endpoint_rule(word: str) -> Rule:
    """``udp:203.0.113.5:51820`` as the rule that lets a qube reach it. :raise CliError: usage."""
    protocol, _, rest = word.partition(":")
    address, _, port = rest.rpartition(":")
    try:
        target = f"dst4={ipaddress.IPv4Address(address)}"
        return parse_rule(f"action=accept proto={protocol} {target} dstports={port} comment=tunnel")
    except (ValueError, FirewallError) as error:
        hint = "for example udp:203.0.113.5:51820; an address, for no name is asked for outside of the tunnel"
        raise CliError(f"--endpoint {word}: {error}", hint=hint, exit_code=USAGE) from error


async def take_role(client: AdminClient, name: str, role: Role, properties: Mapping[str, str]) -> None:
    """Give a new qube all that its role is; the user's own properties come after it."""
    for key, value in role.properties.items():
        if key not in properties:
            await set_new_property(client, name, key, value)
    for feature, value in role.features.items():
        await client.set_feature(name, feature, value)
    for tag in role.tags:
        await client.add_tag(name, tag)


async def set_new_property(client: AdminClient, qube: str, key: str, value: str) -> None:
    """Set a property the user named. :raise CliError: it was refused; says which one."""
    try:
        await client.set_property(key, value, qube)
    except QubesNoSuchPropertyError as error:
        hint = did_you_mean(key, await client.list_properties(qube))
        raise CliError(str(error), hint=hint or "insula prefs QUBE lists the properties") from error
    except InsulaError as error:
        raise CliError(f"property {key}: {error}") from error


def assignments(words: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` words as a mapping. :raise CliError: usage."""
    values: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise CliError(f"{option} {word}: write NAME=VALUE", exit_code=USAGE)
        if key in values:
            raise CliError(f"{option} {key} is given twice", exit_code=USAGE)
        values[key] = value
    return values


def parse_pools(words: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """One pool for all volumes, or a pool for some. :raise CliError: both, or two for all."""
    everywhere = [word for word in words if "=" not in word]
    pools = assignments([word for word in words if "=" in word], "--pool")
    if len(everywhere) > 1 or (everywhere and pools):
        raise CliError("--pool: give one pool for all volumes, or VOLUME=POOL for each", exit_code=USAGE)
    return (everywhere[0] if everywhere else None), pools
