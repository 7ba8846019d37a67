"""What making a qube means, as a pure function of the system; :mod:`insula.lifecycle.manager` carries it out.

The store says what exists. Volumes are made before a qube is recorded and removed after it is gone from the record;
volumes that no qube names are removed when the daemon starts, so a crash between two steps leaves nothing behind.
"""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from insula.lifecycle.engine import CreateRequest
from insula.model.block import VolumeSpec
from insula.model.errors import QubesNoTemplateError, QubesVMAlreadyExistsError, QubesVMInUseError
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import resolve, set_property
from insula.model.qube import Qube
from insula.model.state import PowerState
from insula.model.system import System
from insula.model.tags import creation_tags, with_kept_tags
from insula.model.volumes import default_pools, refreshed, volumes_for
from insula.storage.ext4 import format_or_leave_blank
from insula.storage.pool import Prepare

KERNEL_VOLUME = "kernel"
"""Not a disk: its vid is the version of the kernel the qube is started with."""
INHERITED = (
    "netvm",
    "guivm",
    "audiovm",
    "keyboard_layout",
    "devices_denied",
    "debug",
    "stubdom_mem",
    "bootmode",
)
"""Properties that a disposable has from its template where they were set; of most others the default follows it."""
INTERNAL = "internal"
PRELOADED = "preload-dispvm"
"""What the features of a template begin with that say which of its disposables are held ready, and how many."""


def plan_create(system: System, request: CreateRequest, new_uuid: UUID, dispid: int = 0) -> System:
    """The system with the new qube; errors in the published order (admin-api §2).

    ``dispid``: random number 0…9999; a disposable gets it or the next free one, and its address follows from it.

    :raise QubesVMAlreadyExistsError, QubesVMNotFoundError, QubesLabelNotFoundError, QubesException:
    """
    klass = Klass(request.klass)
    if request.name in system.qubes:
        raise QubesVMAlreadyExistsError(f"There is a qube named {request.name} already")
    template = _template(system, klass, request)
    label = system.label(request.label)
    chosen = dict(request.pools)
    if request.pool is not None:
        snapshots = {"root", "private"} if klass is Klass.DISPVM else {"root"} if klass is Klass.APPVM else set()
        chosen = {volume: request.pool for volume in ("root", "private", "volatile") if volume not in snapshots}
    for pool in chosen.values():
        system.pool(pool)
    qube = Qube(
        name=request.name,
        klass=klass,
        qid=system.free_qid(),
        uuid=new_uuid,
        label=label.name,
        tags=creation_tags(QubeName(request.created_by)),
    )
    if klass is Klass.DISPVM:
        wish = int(request.name.removeprefix("disp")) if request.disposable else dispid
        qube = qube.with_property("dispid", system.free_dispid(wish))
    if request.disposable:
        tags = creation_tags(QubeName(request.created_by), disposable=True)
        qube = qube.with_property("auto_cleanup", True).with_tags(tags)
    if request.disposables:
        qube = qube.with_property("template_for_dispvms", True)
    if klass is Klass.DISPVM and template is not None:
        qube = _as_its_template(qube, template)
    for feature, value in request.features.items():
        qube = qube.with_feature(feature, value)
    created = system.with_new_qube(qube)
    if template is not None:
        # Through the rules of the property: the template must be one, and of the right class.
        created = set_property(created, request.name, "template", template.name, _all_halted)
    qube = created.get(request.name)
    volumes = (
        volumes_for(klass, request.name, template, default_pools(system), chosen=chosen) if (klass.has_machine) else {}
    )
    volumes = {name: _with_pool_defaults(system, volume) for name, volume in volumes.items()}
    return refreshed(with_kept_tags(created.with_qube(replace(qube, volumes=volumes))))


def _as_its_template(qube: Qube, template: Qube) -> Qube:
    """A disposable with all that was said about what it is made from (agent-services §15): it must reach no more than
    that (MC-86), and rules for what carries a tag hold for it. Who made it is its own."""
    for name in INHERITED:
        if name in template.properties:
            qube = qube.with_property(name, template.properties[name])
    for name, value in template.features.items():
        if name != INTERNAL and not name.startswith(PRELOADED):
            qube = qube.with_feature(name, value)
    tags = [tag for tag in template.tags if not tag.startswith(("created-by-", "disp-created-by-"))]
    return qube.with_tags(tags).with_firewall(template.firewall)


def _with_pool_defaults(system: System, volume: VolumeSpec) -> VolumeSpec:
    """A new volume as its pool's options want it (admin-api §5)."""
    if volume.name != "volatile":
        return volume
    return replace(volume, ephemeral=system.pool(volume.pool).options.get("ephemeral_volatile") == str(True))


def _all_halted(_name: QubeName) -> PowerState:
    return PowerState.HALTED


def _template(system: System, klass: Klass, request: CreateRequest) -> Qube | None:
    if not klass.has_template:
        return None
    if request.template is not None:
        return system.get(request.template)
    default = resolve(system, None, "default_template" if klass is Klass.APPVM else "default_dispvm").value
    if not default:
        raise QubesNoTemplateError(f"{request.name} needs a template: none was named and there is no default one")
    return system.get(str(default))


def disks_of(qube: Qube) -> list[VolumeSpec]:
    """The volumes of a qube that live in storage pools."""
    return [volume for name, volume in qube.volumes.items() if name != KERNEL_VOLUME]


def first_content(volume: VolumeSpec) -> Prepare | None:
    """What a new volume holds from the start: a private volume that is kept, a file system; others nothing (None).

    Volumes that are filled at once from elsewhere (a clone, an import, a template's root) replace it.
    """
    return format_or_leave_blank if volume.name == "private" and volume.save_on_stop else None


def borrowers_of(system: System, name: QubeName) -> list[QubeName]:
    """Other qubes that start from a snapshot of one of this qube's volumes."""
    owned = {volume.vid for volume in disks_of(system.get(name)) if volume.save_on_stop}
    return [
        other.name
        for other in system.sorted_qubes()
        if other.name != name and any(volume.source in owned for volume in other.volumes.values())
    ]


def require_unborrowed(system: System, name: QubeName) -> None:
    """:raise QubesVMInUseError: another qube starts from this one's volumes."""
    borrowers = borrowers_of(system, name)
    if borrowers:
        raise QubesVMInUseError(f"{name} is in use: {', '.join(borrowers)} start from its volumes")
