"""Qubes: listing, making, removing, notes."""

from __future__ import annotations

from collections.abc import Mapping

from insula.admin.arguments import parse_words
from insula.admin.call import Call, Context
from insula.lifecycle.engine import CreateRequest
from insula.model.errors import (
    ProtocolError,
    QubesException,
    QubesVMAlreadyExistsError,
)
from insula.model.klass import Klass
from insula.model.labels import parse_label_reference
from insula.model.names import QubeName, parse_qube_name
from insula.model.properties import allows_disposables, view
from insula.model.qube import Qube, parse_notes
from insula.model.state import PowerState
from insula.model.system import System
from insula.model.volumes import VOLUME_NAMES


async def list_classes(context: Context, call: Call) -> str:
    return "".join(f"{klass}\n" for klass in Klass)


async def list_qubes(context: Context, call: Call) -> str:
    """On dom0: all; else that qube. ``NAME class=… state=… uuid=…`` a line."""
    qubes = context.store.system.sorted_qubes() if call.dest.is_admin else [call.dest]
    return "".join(_line(context, qube) for qube in qubes)


def power_state(context: Context, qube: Qube) -> PowerState:
    """State as published: what has no machine here always reports Running (admin-api §4)."""
    return context.engine.power_state(qube.name) if qube.klass.has_machine else PowerState.RUNNING


def _line(context: Context, qube: Qube) -> str:
    return f"{qube.name} class={qube.klass} state={power_state(context, qube)} uuid={qube.uuid}\n"


async def create(context: Context, call: Call) -> str:
    """``admin.vm.Create.CLASS``: payload ``name=N label=L``."""
    await _create(context, call, parse_words(call.untrusted_payload), pool_keys=frozenset())
    return ""


async def create_in_pool(context: Context, call: Call) -> str:
    """``admin.vm.CreateInPool.CLASS``: additionally ``pool=P`` or ``pool:VOLUME=P``…"""
    untrusted_words = parse_words(call.untrusted_payload)
    pool_keys = frozenset({"pool", *(f"pool:{volume}" for volume in VOLUME_NAMES)})
    given = pool_keys & untrusted_words.keys()
    if not given or ("pool" in given and len(given) > 1):
        raise ProtocolError("Give either pool=POOL for all volumes or pool:VOLUME=POOL for single ones")
    await _create(context, call, untrusted_words, pool_keys)
    return ""


async def _create(context: Context, call: Call, untrusted_words: Mapping[str, str], pool_keys: frozenset[str]) -> None:
    """Errors in the published order: name, template, label, pools (those by the engine)."""
    unknown = untrusted_words.keys() - pool_keys - {"name", "label"}
    if unknown:
        raise ProtocolError(f"Unknown word in the payload: {min(unknown)[:64]!a}")
    for key in ("name", "label"):
        if not untrusted_words.get(key):
            raise ProtocolError(f"The payload lacks {key}=")
    klass = Klass(call.method.rpartition(".")[2])
    system = context.store.system
    name = parse_qube_name(untrusted_words["name"])
    if name in system.qubes:
        raise QubesVMAlreadyExistsError(f"There is a qube named {name} already")
    template = _template(system, klass, call.untrusted_arg)
    label = parse_label_reference(untrusted_words["label"], system.labels)
    untrusted_pools = {key: untrusted_words[key] for key in pool_keys & untrusted_words.keys()}
    await context.engine.create(
        CreateRequest(
            klass=klass,
            name=name,
            label=label.name,
            template=template,
            pool=untrusted_pools.pop("pool", None),
            pools={key.removeprefix("pool:"): pool for key, pool in untrusted_pools.items()},
            created_by=call.source.name,
        )
    )


def _template(system: System, klass: Klass, untrusted_template: str) -> QubeName | None:
    """None: the default one, or none at all. :raise ProtocolError, QubesVMNotFoundError:"""
    if not untrusted_template:
        return None
    if not klass.has_template:
        raise ProtocolError(f"A {klass} has no template")
    return system.get(untrusted_template).name


async def create_disposable(context: Context, call: Call) -> str:
    """Make a disposable of the destination, or of the caller's ``default_dispvm`` if that is dom0."""
    if call.untrusted_arg not in ("", "preload"):
        raise ProtocolError(f"Unknown argument: {call.untrusted_arg[:64]}")
    if call.untrusted_payload not in (b"", b"uuid"):
        raise ProtocolError("The payload must be empty or 'uuid'")
    template = _disposable_template(context.store.system, call)
    if call.untrusted_arg == "preload":
        await context.engine.preload_disposables(template.name)
        return ""
    name = await context.engine.create_disposable(template.name, call.source.name)
    return f"uuid:{context.store.system.get(name).uuid}" if call.untrusted_payload else name


def _disposable_template(system: System, call: Call) -> Qube:
    """:raise QubesException: none, or not one that disposables may be made from."""
    if not call.dest.is_admin:
        template = call.dest
    else:
        default = view(system, call.source).vm("default_dispvm")
        if default is None:
            raise QubesException(f"{call.source.name} has no default_dispvm to make a disposable of")
        template = system.get(default)
    if not allows_disposables(system, template):
        raise QubesException(f"{template.name} does not have template_for_dispvms set")
    return template


async def remove(context: Context, call: Call) -> str:
    await context.engine.remove(call.dest.name)
    return ""


async def get_notes(context: Context, call: Call) -> str:
    return call.dest.notes


async def set_notes(context: Context, call: Call) -> str:
    notes = parse_notes(call.untrusted_payload)
    context.commit(context.store.system.with_qube(call.dest.with_notes(notes)))
    return ""
