"""A qube's machine: start, stop, pause, state, console."""

from __future__ import annotations

import json
from pathlib import Path

from insula.admin.call import Call, Context
from insula.admin.handlers.qubes import power_state
from insula.model.desktop import parse_desktop
from insula.model.errors import (
    ProtocolError,
    QubesException,
    QubesNotImplementedError,
    QubesVMNotHaltedError,
    QubesVMNotRunningError,
)
from insula.model.names import QubeName
from insula.model.properties import view

MAX_PATH = 4095
"""Characters (PATH_MAX without its NUL)."""
_SHUTDOWN_WORDS = frozenset({"force", "wait"})


async def start(context: Context, call: Call) -> str:
    """Returns when the qube is up; one that is up or starting already is a success."""
    if not call.dest.klass.has_machine:
        raise QubesVMNotHaltedError(f"{call.dest.name} is always running")
    await context.engine.start(call.dest.name)
    return ""


async def start_with_cd(context: Context, call: Call) -> str:
    """The payload is the path of an image on this computer, UTF-8; the qube boots from it."""
    try:
        path = call.untrusted_payload.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("A path in UTF-8 is expected") from error
    if len(path) > MAX_PATH or "\0" in path:
        raise ProtocolError("Not a path")
    await context.engine.start(_machine(call), Path(path))
    return ""


async def start_plan(context: Context, call: Call) -> str:
    """A JSON list of texts, one a step; nothing is done."""
    return json.dumps(context.engine.start_plan(_machine(call)).describe())


async def shutdown(context: Context, call: Call) -> str:
    words = call.untrusted_arg.split("+") if call.untrusted_arg else []
    if len(set(words)) != len(words) or not _SHUTDOWN_WORDS.issuperset(words):
        raise ProtocolError(f"Unknown argument: {call.untrusted_arg[:64]}")
    await context.engine.shutdown(_machine(call), force="force" in words, wait="wait" in words)
    return ""


async def kill(context: Context, call: Call) -> str:
    await context.engine.kill(_machine(call))
    return ""


async def pause(context: Context, call: Call) -> str:
    await context.engine.pause(_machine(call))
    return ""


async def unpause(context: Context, call: Call) -> str:
    await context.engine.unpause(_machine(call))
    return ""


async def current_state(context: Context, call: Call) -> str:
    """``mem=KiB mem_static_max=KiB cputime=ms power_state=STATE``."""
    state = power_state(context, call.dest)
    if not call.dest.klass.has_machine:
        return f"mem=0 mem_static_max=0 cputime=0 power_state={state}"
    stats = await context.engine.stats(call.dest.name)
    properties = view(context.store.system, call.dest, context.runtime(call.dest.name))
    static_max_kib = max(properties.number("maxmem"), properties.number("memory")) * 1024
    memory_kib, cpu_time_ms = (stats.memory_assigned_kib, stats.cpu_time_ms) if stats else (0, 0)
    return f"mem={memory_kib} mem_static_max={static_max_kib} cputime={cpu_time_ms} power_state={state}"


async def console(context: Context, call: Call) -> str:
    """There is no terminal to hand out: what a qube prints is kept in a size-limited log instead."""
    _running(context, call)
    raise QubesNotImplementedError(f"{call.dest.name} has no interactive console; its output is in the console log")


async def rpc_socket(context: Context, call: Call) -> str:
    """Path of the socket where commands are run in the qube (ours; docs/architecture.md)."""
    return str(context.rpc_socket(_running(context, call)))


async def show_windows(context: Context, call: Call) -> str:
    """The payload names a desktop: some variables of an environment, as JSON; nothing: where the last ones are."""
    desktop = parse_desktop(call.untrusted_payload) if call.untrusted_payload else None
    await context.engine.show_windows(_running(context, call), desktop)
    return ""


def _machine(call: Call) -> QubeName:
    if not call.dest.klass.has_machine:
        raise QubesException(f"{call.dest.name} has no machine on this host that could be stopped")
    return call.dest.name


def _running(context: Context, call: Call) -> QubeName:
    name = _machine(call)
    if not context.engine.power_state(name).is_on:
        raise QubesVMNotRunningError(f"{name} is not running")
    return name
