"""Properties of qubes and of the system.

The same functions serve both: ``admin.property.…`` is about the system, ``admin.vm.property.…`` about the
destination.
"""

from __future__ import annotations

from insula.admin.arguments import ascii_text
from insula.admin.call import Call, Context
from insula.model.errors import QubesPropertyValueError, QubesValueError
from insula.model.properties import (
    Runtime,
    default_of,
    definition,
    global_names,
    names_for,
    parse_value,
    reset_property,
    resolve,
    set_property,
)
from insula.model.property_text import default_text, get_text, list_line
from insula.model.qube import Qube


def _subject(call: Call) -> Qube | None:
    return None if call.method.startswith("admin.property.") else call.dest


def _runtime(context: Context, qube: Qube | None) -> Runtime:
    return context.host() if qube is None else context.runtime(qube.name)


def _names(qube: Qube | None) -> list[str]:
    return global_names() if qube is None else names_for(qube.klass)


async def list_names(context: Context, call: Call) -> str:
    return "".join(f"{name}\n" for name in _names(_subject(call)))


async def get(context: Context, call: Call) -> str:
    qube = _subject(call)
    return get_text(resolve(context.store.system, qube, call.untrusted_arg, _runtime(context, qube)))


async def get_all(context: Context, call: Call) -> str:
    qube, system = _subject(call), context.store.system
    runtime = _runtime(context, qube)
    return "".join(list_line(name, resolve(system, qube, name, runtime)) for name in sorted(_names(qube)))


async def get_default(context: Context, call: Call) -> str:
    qube = _subject(call)
    return default_text(default_of(context.store.system, qube, call.untrusted_arg, _runtime(context, qube)))


async def help_text(context: Context, call: Call) -> str:
    qube = _subject(call)
    return definition(None if qube is None else qube.klass, call.untrusted_arg).help


async def set_value(context: Context, call: Call) -> str:
    qube, system, name = _subject(call), context.store.system, call.untrusted_arg
    found = definition(None if qube is None else qube.klass, name)
    try:
        untrusted_text = ascii_text(call.untrusted_payload, f"Property {name}")
    except QubesValueError as error:
        raise QubesPropertyValueError(str(error)) from error
    value = parse_value(found, untrusted_text, system, qube)
    kernels = frozenset(context.host().kernel_options)
    context.commit(
        set_property(
            system, None if qube is None else qube.name, name, value, context.engine.power_state, kernels=kernels
        )
    )
    await _apply(context, qube, name)
    return ""


async def reset(context: Context, call: Call) -> str:
    qube, name = _subject(call), call.untrusted_arg
    context.commit(
        reset_property(context.store.system, None if qube is None else qube.name, name, context.engine.power_state)
    )
    await _apply(context, qube, name)
    return ""


async def _apply(context: Context, qube: Qube | None, name: str) -> None:
    if qube is None or qube.klass.has_machine:
        await context.engine.property_changed(None if qube is None else qube.name, name)
