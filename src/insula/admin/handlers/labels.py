"""Labels of the system."""

from __future__ import annotations

from insula.admin.arguments import ascii_text
from insula.admin.call import Call, Context
from insula.model.errors import ProtocolError, QubesInvalidLabelValueError, QubesValueError
from insula.model.labels import Label, free_index, parse_label_color, parse_label_name


async def list_labels(context: Context, call: Call) -> str:
    return "".join(f"{name}\n" for name in context.store.system.labels)


async def get(context: Context, call: Call) -> str:
    """``0xRRGGBB``."""
    return context.store.system.label(call.untrusted_arg).color_text


async def index(context: Context, call: Call) -> str:
    return str(context.store.system.label(call.untrusted_arg).index)


async def create(context: Context, call: Call) -> str:
    system = context.store.system
    name = parse_label_name(call.untrusted_arg)
    try:
        color = parse_label_color(ascii_text(call.untrusted_payload, "A label colour"))
    except QubesValueError as error:
        raise QubesInvalidLabelValueError(str(error)) from error
    context.commit(system.with_label(Label(name, color, free_index(system.labels.values()))))
    return ""


async def remove(context: Context, call: Call) -> str:
    label = context.store.system.label(call.untrusted_arg)
    if label.is_builtin:
        raise ProtocolError(f"Label {label.name} is built in and cannot be removed")
    context.commit(context.store.system.without_label(label.name))
    return ""
