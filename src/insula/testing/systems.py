"""Ready-made systems for tests: a template, a net qube, an app qube and a disposable, made as the product does."""

from __future__ import annotations

from uuid import UUID

from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import set_property
from insula.model.qube import PropertyValue, Qube
from insula.model.state import PowerState
from insula.model.system import PoolConfig, System
from insula.model.volumes import default_pools, volumes_for

TEMPLATE = QubeName("debian-12")
NET = QubeName("sys-net")
WORK = QubeName("work")
DISPOSABLE = QubeName("disp1234")


def all_halted(name: QubeName) -> PowerState:
    """No machine runs."""
    return PowerState.HALTED


def with_qube_of(system: System, klass: Klass, name: str, *, label: str = "red", **properties: PropertyValue) -> System:
    """Add a qube with the volumes its class has; its UUID follows from its number."""
    template = properties.get("template")
    qid = system.free_qid()
    volumes = {}
    if klass.has_machine:
        of = system.get(template) if isinstance(template, str) else None
        volumes = volumes_for(klass, QubeName(name), of, default_pools(system))
    return system.with_new_qube(
        Qube(QubeName(name), klass, qid, UUID(int=qid), label, properties=properties, volumes=volumes)
    )


def small_system() -> System:
    """dom0, ``debian-12``, ``sys-net`` (provides network, uses none), ``work`` and ``disp1234``, a disposable of it."""
    system = System().with_pool(PoolConfig("default", "qcow2", {"dir_path": "/pools/default"}))
    system = with_qube_of(system, Klass.TEMPLATEVM, TEMPLATE, label="black")
    system = with_qube_of(system, Klass.APPVM, NET, template=TEMPLATE, netvm=None)
    system = with_qube_of(system, Klass.APPVM, WORK, label="blue", template=TEMPLATE)
    system = set_property(system, NET, "provides_network", True, all_halted)
    system = set_property(system, None, "default_netvm", NET, all_halted)
    system = set_property(system, WORK, "template_for_dispvms", True, all_halted)
    return with_qube_of(system, Klass.DISPVM, DISPOSABLE, template=WORK, dispid=1234, auto_cleanup=True)
