"""Features of qubes."""

from __future__ import annotations

from insula.admin.call import Call, Context
from insula.model import features, forwards
from insula.model.errors import ProtocolError, QubesVMNotHaltedError
from insula.model.features import Lookup
from insula.model.roles import FIXED_WHILE_ON

_LOOKUPS = {
    "Get": Lookup.OWN,
    "CheckWithTemplate": Lookup.TEMPLATE,
    "CheckWithNetvm": Lookup.NETVM,
    "CheckWithAdminVM": Lookup.ADMINVM,
    "CheckWithTemplateAndAdminVM": Lookup.TEMPLATE_AND_ADMINVM,
}
"""Last word of the method → where to look."""


async def list_features(context: Context, call: Call) -> str:
    return "".join(f"{name}\n" for name in call.dest.features)


async def get(context: Context, call: Call) -> str:
    """``Get`` and every ``CheckWith…``."""
    lookup = _LOOKUPS[call.method.rpartition(".")[2]]
    return features.get_feature(context.store.system, call.dest.name, call.untrusted_arg, lookup)


async def set_feature(context: Context, call: Call) -> str:
    name = features.parse_feature_name(call.untrusted_arg)
    features.check_client_may_change(name)
    _check_is_off(context, call, name)
    try:
        untrusted_value = call.untrusted_payload.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError(f"The value of feature {name} must be printable ASCII") from None
    value = features.parse_feature_value(name, untrusted_value)
    context.commit(features.set_feature(context.store.system, call.dest.name, name, value, context.engine.power_state))
    await _carry_out(context, call, name)
    return ""


async def remove(context: Context, call: Call) -> str:
    features.check_client_may_change(call.untrusted_arg)
    _check_is_off(context, call, call.untrusted_arg)
    context.commit(features.remove_feature(context.store.system, call.dest.name, call.untrusted_arg))
    await _carry_out(context, call, call.untrusted_arg)
    return ""


def _check_is_off(context: Context, call: Call, name: str) -> None:
    """:raise QubesVMNotHaltedError: others rely on what the running qube was told at its start."""
    if name in FIXED_WHILE_ON and context.engine.power_state(call.dest.name).is_on:
        raise QubesVMNotHaltedError(f"{call.dest.name} must be halted to change its feature {name}")


async def _carry_out(context: Context, call: Call, name: str) -> None:
    if name == forwards.FEATURE:
        await context.engine.firewall_changed(call.dest.name)
