"""What starting a qube will do, decided before anything is done.

:func:`plan_start` is pure: the same system gives the same plan. ``insula start --plan`` prints it,
:mod:`insula.lifecycle.start` carries it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from insula.hal.capabilities import EMULATED_KERNEL_OPTIONS
from insula.hal.driver import Nic
from insula.lifecycle.kernels import Kernel
from insula.model.block import BlockSource, VolumeSpec
from insula.model.errors import QubesException, QubesVMInUseError, QubesVMNotHaltedError
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.pci import PciAddress
from insula.model.properties import resolve
from insula.model.property_resolution import view
from insula.model.property_view import View
from insula.model.qube import Qube
from insula.model.roles import refusal
from insula.model.system import System
from insula.model.uplink import card_of, leads_outside
from insula.model.volumes import as_started

MAX_CLIENTS = 16
"""Qubes that one net qube serves at a time; each costs it a port that is looked at when it boots."""

NO_STRICT_RESET = "uplink-no-strict-reset"
"""Feature of a qube whose network card may be one that cannot be reset: what one start left in it meets the next."""

EMULATED_TIMEOUT_S = 240
"""For a guest's agent to answer where its CPU is emulated and nobody has said how long: a boot takes 4 s on an idle
host, and ten times as long on one whose cores have other work, for machines come after what serves the user. The
published default (60) is for hardware."""

DISK_ORDER = ("root", "private", "volatile")
"""vda, vdb, vdc; the guest finds them by their serial, the order is for people."""


class StartMode(StrEnum):
    """Values of the property ``start_mode``."""

    WARM = "warm"
    """As a fork of a seed, which is made first if there is none."""
    COLD = "cold"
    """Always boot: nothing is shared with any other qube but the template's files."""
    AUTO = "auto"
    """As a fork if there is a seed; else boot, and have a seed made for the next start."""


@dataclass(frozen=True)
class StartPlan:
    """Everything a start needs; complete, so that carrying it out looks nothing up."""

    name: QubeName
    klass: Klass
    uuid: UUID
    qid: int
    memory_mib: int
    vcpus: int
    kernel: Kernel | None
    """None: it boots from its own disk and has no agent of ours, but a screen of its own."""
    cmdline: str
    volumes: tuple[VolumeSpec, ...]
    """In disk order."""
    agent_timeout_s: int
    debug: bool
    net_qubes: tuple[QubeName, ...] = ()
    """Started before, nearest to the outside first."""
    nic: Nic | None = None
    """Its interface, if it has a network."""
    links: int = 0
    """How many qubes may have it as their net qube at a time."""
    card: PciAddress | None = None
    """A network card of the host that it has for itself."""
    strict_reset: bool = True
    start_mode: StartMode = StartMode.AUTO
    seed_cmdline: str = ""
    """Kernel command line of a seed this qube may be forked from: without anything of the qube itself."""
    cd: BlockSource | None = None
    """It is booted from before its disk."""
    root_owner: QubeName | None = None
    """The template whose root it starts from a snapshot of; None: it has a root of its own and cannot be forked."""

    @property
    def may_fork(self) -> bool:
        """Whether this qube can be a fork, if the hypervisor can and there is a seed."""
        is_ours = self.kernel is not None and self.root_owner is not None
        return is_ours and self.start_mode is not StartMode.COLD and self.card is None

    @property
    def own_kernel(self) -> Kernel:
        """Of a qube that is booted by us, as all that may be forked are."""
        assert self.kernel is not None
        return self.kernel

    def describe(self) -> list[str]:
        """The steps in order, one line each, for people."""
        lines = [f"start net qube {net} first, if it is not up" for net in self.net_qubes]
        lines.append(f"reserve {self.memory_mib} MiB of memory")
        for volume in self.volumes:
            lines.append(f"activate volume {volume.name}: {_volume_text(volume)}")
        if self.kernel is None:
            booted = "its own disk" if self.cd is None else f"the CD {self.cd.layers[0].path}"
            lines.append(f"define the machine: {self.vcpus} vcpus, a screen, booted from {booted}")
        else:
            kernel = f"kernel {self.kernel.version}, options {self.cmdline!r}"
            lines.append(f"define the machine: {self.vcpus} vcpus, {kernel}")
        if self.may_fork:
            lines.append(f"start it paused, in its sandbox: a fork of {self.root_owner}'s seed where there is one")
        else:
            lines.append("start it paused, in its sandbox")
        lines.append("start its session process and publish its keys")
        if self.net_qubes:
            lines.append(f"link it to {self.net_qubes[-1]}")
        elif self.nic is not None:
            lines.append("link it to this host's network")
        if self.card is not None:
            lines.insert(-1, f"take network card {self.card} from this host")
        if self.kernel is None:
            lines.append("let it run")
        else:
            lines.append(f"let it run and wait up to {self.agent_timeout_s} s for its agent")
        return lines


def _volume_text(volume: VolumeSpec) -> str:
    end = "encrypted, its key thrown away at the end" if volume.ephemeral else "thrown away at the end"
    if volume.snap_on_start:
        return f"snapshot of {volume.source} in pool {volume.pool}, {end}"
    if volume.save_on_stop:
        return f"{volume.vid} in pool {volume.pool}, kept"
    return f"{volume.size} bytes of pool {volume.pool}, {end}"


def plan_start(
    system: System, name: QubeName, kernel_of: Callable[[str], Kernel], *, emulated: bool = False
) -> StartPlan:
    """Decide how ``name`` is started.

    :param kernel_of: finds a kernel by its version (:meth:`insula.lifecycle.kernels.Kernels.get`).
    :param emulated: the hypervisor has no CPU to run guests on and emulates one.
    :raise QubesException: the qube must not or cannot be started; the message says why.
    """
    qube = system.get(name)
    here = view(system, qube)
    if qube.klass in (Klass.ADMINVM, Klass.REMOTEVM):
        raise QubesVMNotHaltedError(f"{name} is an {qube.klass} and cannot be started")
    _refuse_prohibited(system, qube)
    _refuse_other_way(here)

    def value(prop: str) -> Any:
        return resolve(system, qube, prop).value

    version = value("kernel")
    # Said of this qube: where nothing is said, a kernel is only missing.
    boots_itself = qube.properties.get("kernel") == ""
    if not version and not boots_itself:
        raise QubesException(
            f"{name} has no kernel: set its property 'kernel', or build a template, which sets 'default_kernel'"
        )
    kernel = None if boots_itself else kernel_of(str(version))
    options = str(qube.properties.get("kernelopts") or "")
    mode = StartMode(value("start_mode"))

    def cmdline(*own: str) -> str:
        # The person's options last, so that their word counts.
        if kernel is None:
            return ""
        words = (kernel.cmdline, EMULATED_KERNEL_OPTIONS if emulated else "", *own, options)
        return " ".join(filter(None, words))

    return StartPlan(
        name=name,
        klass=qube.klass,
        uuid=qube.uuid,
        qid=qube.qid,
        memory_mib=int(value("memory")),
        vcpus=int(value("vcpus")),
        kernel=kernel,
        cmdline=cmdline(f"systemd.machine_id={qube.uuid.hex}"),
        volumes=tuple(as_started(qube, qube.volumes[disk]) for disk in DISK_ORDER if disk in qube.volumes),
        agent_timeout_s=_agent_timeout_s(here, emulated=emulated),
        debug=bool(value("debug")),
        net_qubes=_net_chain(system, qube),
        nic=Nic(here.text("mac")) if here.netvm is not None or leads_outside(here) else None,
        card=card_of(here),
        strict_reset=not here.subject.features.get(NO_STRICT_RESET),
        links=MAX_CLIENTS if here.flag("provides_network") else 0,
        start_mode=mode,
        seed_cmdline=cmdline(),
        root_owner=_root_owner(system, qube),
    )


def _agent_timeout_s(here: View, *, emulated: bool) -> int:
    said: View | None = here
    while said is not None and "qrexec_timeout" not in said.subject.properties:
        said = said.template
    is_said = said is not None or not resolve(here.system, None, "default_qrexec_timeout").is_default
    return EMULATED_TIMEOUT_S if emulated and not is_said else here.number("qrexec_timeout")


def with_cd(plan: StartPlan, cd: BlockSource) -> StartPlan:
    """The same start with a CD. :raise QubesException: the qube does not boot by itself."""
    if plan.kernel is not None:
        raise QubesException(
            f"{plan.name} is booted by a kernel of this host, not from a CD: set its kernel to nothing"
        )
    return replace(plan, cd=cd)


def _root_owner(system: System, qube: Qube) -> QubeName | None:
    root = qube.volumes.get("root")
    if root is None or not root.snap_on_start:
        return None
    owner = qube
    while owner.template is not None:
        owner = system.get(owner.template)
    return owner.name


def _refuse_prohibited(system: System, qube: Qube) -> None:
    reason = qube.features.get("prohibit-start")
    if reason:
        raise QubesException(f"{qube.name} must not be started: {reason}")
    if "backup-restore-in-progress" in qube.tags:
        raise QubesVMInUseError(f"{qube.name} is being restored from a backup")
    seen = {qube.name}
    template = qube.template
    while template is not None:
        if template in seen:
            raise QubesException(f"{qube.name} is, through {template}, its own template")
        seen.add(template)
        template = system.get(template).template


def _refuse_other_way(here: View) -> None:
    """Who is to be anonymous does not start with another way to the network than Tor."""
    if here.netvm is not None or leads_outside(here) or card_of(here) is not None:
        reason = refusal(here.system, here.subject, None if here.netvm is None else here.netvm.subject)
        if reason:
            raise QubesException(reason)


def _net_chain(system: System, qube: Qube) -> tuple[QubeName, ...]:
    chain: list[QubeName] = []
    current = qube
    while True:
        netvm = resolve(system, current, "netvm").value
        if not netvm:
            return tuple(reversed(chain))
        if netvm in chain or netvm == qube.name:
            raise QubesException(f"{qube.name}: its net qubes form a loop at {netvm}")
        chain.append(QubeName(str(netvm)))
        current = system.get(chain[-1])
