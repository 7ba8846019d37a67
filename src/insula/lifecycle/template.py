"""Bringing a built template into the system: its kernel, its root volume, the qube that owns it.

The image was built outside the daemon (``insula.templates``), which has no network code; here it is only a file.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from insula.lifecycle.create import disks_of, first_content, plan_create
from insula.lifecycle.engine import CreateRequest, Engine
from insula.lifecycle.host import Host
from insula.model.block import VolumeSpec
from insula.model.errors import QubesException, QubesVMNotHaltedError, StoragePoolException
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import allows_disposables
from insula.model.state import PowerState
from insula.model.system import System
from insula.model.volumes import refreshed
from insula.storage.pool import StorageError

CONTENT_KEY_FEATURE = "template-content-key"
"""Says which build a template's root is; the same key is not installed twice."""
TEMPLATE_LABEL = "black"
DEFAULT_DISPVM = QubeName("default-dvm")
"""What disposables are made from while the user names nothing else; the published name, and colour."""
DEFAULT_DISPVM_LABEL = "red"


@dataclass(frozen=True)
class TemplateImage:
    """A built template as files, with what a qube must know of it."""

    name: QubeName
    root_image: Path
    """Raw image of the root file system, sparse; a multiple of 512 bytes."""
    kernel: Path
    initrd: Path
    kernel_version: str
    cmdline: str
    content_key: str
    distribution: str
    release: str


def installed_key(system: System, name: QubeName) -> str | None:
    """Content key of the template of that name, None if there is none."""
    qube = system.qubes.get(name)
    return None if qube is None else qube.features.get(CONTENT_KEY_FEATURE)


def plan_install(system: System, image: TemplateImage, size: int, new_uuid: uuid.UUID) -> System:
    """The system with the template made or renewed, and named as default where there was none. Pure.

    :raise QubesException: a qube of that name exists and is no template.
    """
    existing = system.qubes.get(image.name)
    if existing is None:
        request = CreateRequest(klass=Klass.TEMPLATEVM, name=image.name, label=TEMPLATE_LABEL)
        system = plan_create(system, request, new_uuid)
    elif existing.klass is not Klass.TEMPLATEVM:
        raise QubesException(f"There is a qube {image.name} already and it is an {existing.klass}, not a template")
    qube = system.get(image.name)
    qube = (
        qube.with_property("kernel", image.kernel_version)
        .with_feature(CONTENT_KEY_FEATURE, image.content_key)
        .with_feature("os", "Linux")
        .with_feature("os-distribution", image.distribution)
        .with_feature("os-version", image.release)
        .with_feature("vmexec", "1")
        .with_feature("qrexec", "1")
        .with_volume(replace(qube.volumes["root"], size=size))
    )
    system = system.with_qube(qube)
    if not system.properties.get("default_template"):
        system = system.with_property("default_template", image.name)
    if not system.properties.get("default_kernel"):
        system = system.with_property("default_kernel", image.kernel_version)
    return refreshed(system)


async def install_template(host: Host, image: TemplateImage, state: PowerState | None) -> None:
    """Install or renew a template. Qubes that run keep the root they started from; the next start takes the new one.

    :raise QubesException: nothing was changed (a kernel that was copied stays, unused).
    """
    if state not in (None, PowerState.HALTED):
        raise QubesVMNotHaltedError(f"Template {image.name} is not halted; stop it first")
    is_new = image.name not in host.store.system.qubes
    size = image.root_image.stat().st_size
    planned = plan_install(host.store.system, image, size, uuid.uuid4())
    template_uuid = planned.get(image.name).uuid
    volumes = {volume.name: volume for volume in disks_of(planned.get(image.name))}
    host.kernels.install(image.kernel_version, image.kernel, image.initrd, image.cmdline)
    made: list[VolumeSpec] = []
    try:
        if is_new:
            for volume in volumes.values():
                await host.pool_of(volume).create(volume, first_content(volume))
                made.append(volume)
        await host.pool_of(volumes["root"]).import_file(volumes["root"], image.root_image)
        host.store.commit(plan_install(host.store.system, image, size, template_uuid))
    except (StorageError, OSError) as e:
        for volume in made:
            await host.pool_of(volume).remove(volume)
        raise StoragePoolException(f"Could not install template {image.name}: {e}") from e
    if is_new:
        host.publish("", "domain-add", vm=image.name)
    host.publish(image.name, "template-postinstall")


async def provide_default_dispvm(host: Host, engine: Engine, template: QubeName) -> None:
    """Have something that disposables are made from, so that one is offered where a rule asks and files open in one.

    Only while nobody has said what ``default_dispvm`` is, be it none; a qube that has the name stays as it is.

    :raise QubesException: it could not be made; nothing was changed.
    """
    if "default_dispvm" in host.store.system.properties:
        return
    if DEFAULT_DISPVM not in host.store.system.qubes:
        await engine.create(
            CreateRequest(Klass.APPVM, DEFAULT_DISPVM, DEFAULT_DISPVM_LABEL, template=template, disposables=True)
        )
    system = host.store.system
    if allows_disposables(system, system.get(DEFAULT_DISPVM)):
        host.store.commit(system.with_property("default_dispvm", DEFAULT_DISPVM))
        host.publish("", "property-set:default_dispvm", name="default_dispvm", newvalue=DEFAULT_DISPVM)
