"""Devices: the microphone of the desktop; of other classes none yet. Which interfaces are denied is a property."""

from __future__ import annotations

from insula.admin.call import Call, Context
from insula.model import devices
from insula.model.devices import CODE_LENGTH, MICROPHONE
from insula.model.errors import QubesException
from insula.model.names import ADMIN_NAME
from insula.model.properties import view


async def list_nothing(context: Context, call: Call) -> str:
    return ""


async def list_classes(context: Context, call: Call) -> str:
    return f"{MICROPHONE}\n"


async def list_available(context: Context, call: Call) -> str:
    if not call.dest.is_admin or call.untrusted_arg not in ("", MICROPHONE):
        return ""
    return devices.available(context.microphone.holder(context.engine))


async def list_attached(context: Context, call: Call) -> str:
    if call.untrusted_arg:
        devices.check_microphone(call.untrusted_arg)
    return devices.assignment(call.dest.name) if context.microphone.holder(context.engine) == call.dest.name else ""


async def attach(context: Context, call: Call) -> str:
    """Until it is detached or the qube ends; nothing is kept."""
    name = call.dest.name
    devices.check_microphone(call.untrusted_arg)
    devices.check_assignment(call.untrusted_payload, name)
    of_qube = view(context.store.system, call.dest)
    devices.check_denied(of_qube.text("devices_denied"))
    if of_qube.vm("audiovm") != ADMIN_NAME:
        raise QubesException(f"The sound of {name} is not that of this desktop (audiovm)")
    context.microphone.attach(context.engine, name)
    context.publish(name, f"device-attach:{MICROPHONE}", device=devices.DEVICE, options="{}")
    return ""


async def detach(context: Context, call: Call) -> str:
    """What it records ends before this is answered."""
    devices.check_microphone(call.untrusted_arg)
    context.microphone.detach(context.engine, call.dest.name)
    context.publish(call.dest.name, f"device-detach:{MICROPHONE}", port=devices.PORT)
    return ""


async def list_denied(context: Context, call: Call) -> str:
    """One interface code a line, without a final newline (as published)."""
    codes = view(context.store.system, call.dest).text("devices_denied") if call.dest.klass.has_machine else ""
    return "\n".join(codes[start : start + CODE_LENGTH] for start in range(0, len(codes), CODE_LENGTH))
