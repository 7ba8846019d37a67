"""Which volumes a qube has and how they follow from its class and template (admin-api §5).

=====================  ==================  ==================  ============  =======
class                  root                private             volatile      kernel
=====================  ==================  ==================  ============  =======
TemplateVM, Standalone keep, 10 GiB        keep, 2 GiB         10 GiB        ro
AppVM                  snapshot            keep, 2 GiB         10 GiB        ro
DispVM                 snapshot            snapshot            12 GiB        ro
=====================  ==================  ==================  ============  =======

keep: ``save_on_stop``. snapshot: ``snap_on_start`` of the template's volume. A disposable's template is an app qube,
whose root is a snapshot itself; the disposable's root is then a snapshot of what that one is a snapshot of.
The kernel volume's vid is the kernel's version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from insula.model.block import GIB, VolumeSpec
from insula.model.errors import QubesException, QubesValueError
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.property_resolution import view
from insula.model.qube import Qube
from insula.model.system import System

VOLUME_NAMES = ("root", "private", "volatile", "kernel")
ROOT_SIZE = 10 * GIB
PRIVATE_SIZE = 2 * GIB
VOLATILE_SIZE = 10 * GIB
DISPOSABLE_VOLATILE_SIZE = 12 * GIB
KEPT_REVISIONS = 1
"""Older revisions of a volume that keeps what is written."""
MAX_VOLUME_SIZE = 2**53
"""Bytes; 8 PiB, far above what any pool holds and exact wherever numbers travel as JSON."""

SNAPSHOTS: Mapping[Klass, frozenset[str]] = {
    Klass.APPVM: frozenset({"root"}),
    Klass.DISPVM: frozenset({"root", "private"}),
}
"""Volumes that start from the template's."""


def volume_vid(qube: QubeName, volume: str) -> str:
    """Identifier of a volume within its pool."""
    return f"qubes/{qube}/{volume}"


def default_pools(system: System) -> dict[str, str]:
    """Volume name → pool for new volumes. :raise QubesException: there is no pool at all."""
    properties = view(system, None)
    pools = {volume: properties.text(f"default_pool_{volume}") for volume in VOLUME_NAMES}
    if not all(pools.values()):
        raise QubesException("There is no storage pool yet")
    return pools


def volumes_for(
    klass: Klass,
    name: QubeName,
    template: Qube | None,
    pools: Mapping[str, str],
    *,
    chosen: Mapping[str, str] | None = None,
    kernel: str = "",
) -> dict[str, VolumeSpec]:
    """The volumes of a new qube, in the order root, private, volatile, kernel; none for dom0 and remote qubes.

    ``pools``: volume name → pool, complete (:func:`default_pools`). ``chosen``: pools somebody asked for, which
    take precedence. ``kernel``: version it boots, empty: its own.

    :raise QubesException: a snapshot was asked for in another pool than its source's, or an unknown volume.
    """
    if not klass.has_machine:
        return {}
    chosen = chosen or {}
    unknown = set(chosen) - set(VOLUME_NAMES)
    if unknown:
        raise QubesException(f"A qube has no volume {min(unknown)!a}")
    sizes = {
        "root": ROOT_SIZE,
        "private": PRIVATE_SIZE,
        "volatile": DISPOSABLE_VOLATILE_SIZE if klass is Klass.DISPVM else VOLATILE_SIZE,
    }
    made: dict[str, VolumeSpec] = {}
    for volume, size in sizes.items():
        vid = volume_vid(name, volume)
        pool = chosen.get(volume, pools[volume])
        if volume in SNAPSHOTS.get(klass, ()):
            source = _snapshot_source(name, template, volume)
            if chosen.get(volume, source.pool) != source.pool:
                raise QubesException(
                    f"Volume {volume} of {name} is a snapshot and must be in {source.pool}, the pool of {source.vid}"
                )
            made[volume] = VolumeSpec(
                volume, source.pool, vid, source.size, snap_on_start=True, source=source.vid, revisions_to_keep=0
            )
        else:
            keep = volume != "volatile"
            revisions = KEPT_REVISIONS if keep else 0
            made[volume] = VolumeSpec(volume, pool, vid, size, save_on_stop=keep, revisions_to_keep=revisions)
    kernel_pool = chosen.get("kernel", pools["kernel"])
    made["kernel"] = VolumeSpec("kernel", kernel_pool, kernel, 0, rw=False, revisions_to_keep=0)
    return made


def refreshed(system: System) -> System:
    """Bring everything in volumes that follows from elsewhere up to date: sources, sizes and pools of snapshots, and
    kernel versions. Call after a change of templates, kernels or sizes; what is up to date stays the same object.
    """
    changed: list[Qube] = []
    current = system
    # App qubes before disposables: the latter follow what the former follow.
    for qube in sorted(system.qubes.values(), key=lambda qube: qube.klass is Klass.DISPVM):
        fresh = _refreshed_volumes(current, qube)
        if fresh != qube.volumes:
            changed.append(replace(qube, volumes=fresh))
            current = current.with_qube(changed[-1])
    return current


def as_started(qube: Qube, volume: VolumeSpec) -> VolumeSpec:
    """The volume as a start activates it: whatever a disposable writes is encrypted with a key that is never kept.

    Its volumes are thrown away with it; encrypted, nothing of them can be read from the disk afterwards either. The
    published setting ``ephemeral`` stays what it is: a choice, for volatile volumes of any qube.
    """
    if qube.klass is Klass.DISPVM and volume.rw and not volume.save_on_stop:
        return replace(volume, ephemeral=True)
    return volume


def _refreshed_volumes(system: System, qube: Qube) -> dict[str, VolumeSpec]:
    fresh = dict(qube.volumes)
    for name, volume in qube.volumes.items():
        if volume.snap_on_start:
            source = _snapshot_source(qube.name, system.template_of(qube), name)
            fresh[name] = replace(volume, pool=source.pool, source=source.vid, size=source.size)
        elif name == "kernel":
            fresh[name] = replace(volume, vid=view(system, qube).text("kernel"))
    return fresh


def _snapshot_source(name: QubeName, template: Qube | None, volume: str) -> VolumeSpec:
    """The template's volume; if that is a snapshot itself, what it is a snapshot of, as a spec of the same shape."""
    if template is None or volume not in template.volumes:
        raise QubesException(f"{name} has no template to take its {volume} from")
    spec = template.volumes[volume]
    return replace(spec, vid=spec.source) if spec.snap_on_start and spec.source is not None else spec


def parse_volume_size(untrusted_text: str) -> int:
    """A size in bytes: decimal, at most 19 digits, no leading zeros (admin-api §2); a multiple of 512.

    :raise QubesValueError:
    """
    if not (untrusted_text.isascii() and untrusted_text.isdigit() and len(untrusted_text) <= 19):
        raise QubesValueError("A volume's size is a decimal number of bytes")
    if untrusted_text[0] == "0":
        raise QubesValueError("A volume's size has no leading zero")
    size = int(untrusted_text)
    if size > MAX_VOLUME_SIZE:
        raise QubesValueError(f"A volume has at most {MAX_VOLUME_SIZE} bytes")
    if size % 512:
        raise QubesValueError("A volume's size is a multiple of 512 bytes")
    return size
