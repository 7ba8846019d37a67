"""The snapshot that policy asks about, made from the configured system. Apart from :mod:`insula.policy.snapshot`,
because programs that are told of the system by others need not load the model for it.
"""

from __future__ import annotations

from collections.abc import Callable

from insula.model.names import QubeName
from insula.model.properties import names_for, view
from insula.model.qube import Qube
from insula.model.state import PowerState
from insula.model.system import System
from insula.policy.snapshot import QubeFacts, Snapshot


def snapshot_of(system: System, power_state: Callable[[QubeName], PowerState]) -> Snapshot:
    """Facts about a configured system and the machines that run now."""
    return Snapshot(_facts(system, qube, power_state(qube.name)) for qube in system.sorted_qubes())


def _facts(system: System, qube: Qube, state: PowerState) -> QubeFacts:
    here, known = view(system, qube), frozenset(names_for(qube.klass))

    def vm(name: str) -> str | None:
        return here.vm(name) if name in known else None

    return QubeFacts(
        name=qube.name,
        uuid=str(qube.uuid),
        klass=qube.klass.value,
        tags=qube.tags,
        default_dispvm=vm("default_dispvm"),
        template_for_dispvms="template_for_dispvms" in known and here.flag("template_for_dispvms"),
        power_state=state.value,
        internal=bool(qube.features.get("internal")),
        guivm=vm("guivm"),
        icon=here.text("icon"),
        label=system.label(qube.label).color_text,
        relayvm=vm("relayvm"),
        transport_rpc=(here.text("transport_rpc") or None) if "transport_rpc" in known else None,
    )
