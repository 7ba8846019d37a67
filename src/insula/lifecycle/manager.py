"""The engine behind the Admin API: one :class:`Supervisor` a qube that is or was on, and what makes and removes qubes.

Its other parts: :mod:`volumes` (with what keeps operations on one qube apart), :mod:`pools`, :mod:`disposables`,
:mod:`seed_keeper`.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from insula.hal.capabilities import Capability
from insula.hal.driver import Machine, MachineStats
from insula.hal.errors import HalError, MachineGone
from insula.lifecycle.cd import cd_image
from insula.lifecycle.create import disks_of, first_content, plan_create, require_unborrowed
from insula.lifecycle.disposables import Disposables, wanted_ready
from insula.lifecycle.engine import CreateRequest
from insula.lifecycle.host import Host, Session, log
from insula.lifecycle.links import Links, Running
from insula.lifecycle.plan import StartPlan, plan_start, with_cd
from insula.lifecycle.pools import PoolOperations
from insula.lifecycle.readiness import make_ready
from insula.lifecycle.reconcile import reconcile
from insula.lifecycle.seed_keeper import SeedKeeper, plan_app_of
from insula.lifecycle.seeds import Seed
from insula.lifecycle.standby import Standby
from insula.lifecycle.supervisor import Supervisor
from insula.lifecycle.volumes import VolumeOperations
from insula.model.block import VolumeSpec
from insula.model.errors import (
    QubesException,
    QubesNotImplementedError,
    QubesPoolNotFoundError,
    QubesVMInUseError,
    QubesVMNotHaltedError,
    QubesVMNotStartedError,
    StoragePoolException,
)
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.properties import resolve
from insula.model.state import PowerState
from insula.model.system import MAX_DISPID
from insula.storage.pool import StorageError

STOP_ALL_TIMEOUT_S = 60.0
"""For :meth:`LifecycleEngine.stop_all`; what is still on after that is killed."""


class LifecycleEngine(VolumeOperations, PoolOperations):
    """Implements :class:`insula.lifecycle.engine.Engine`."""

    def __init__(self, host: Host, runtime_folders: Path, seeds: SeedKeeper | None = None) -> None:
        """:param seeds: None: every start boots."""
        VolumeOperations.__init__(self, host)
        PoolOperations.__init__(self)
        self.seeds = host.seeds = seeds
        self.links = host.links = Links(host, self._on, self._record_link)
        self.standby: Standby | None = None
        if seeds is not None:
            self.standby = host.standby = Standby(host)
            seeds.on_drop, seeds.on_made = self.standby.drop, self.standby.note_seed
        self.disposables = Disposables(host, self)
        self._runtime_folders = runtime_folders
        self._supervisors: dict[QubeName, Supervisor] = {}

    # -- the daemon's beginning and end

    async def recover(self) -> None:
        """Find running qubes again and clear up after a crash."""
        ran = self.host.store.machines().keys()
        found = await reconcile(self.host, self._runtime_folders)
        names = {running.name for running in found}
        await self._remove_ended(ran - names)
        for running in found:
            if running.link is not None and running.link[0] in names:
                self.links.restore(QubeName(running.name), running.link)
        for running in found:
            await self._supervisor(QubeName(running.name)).adopt(running)
        for running in found:
            await self.links.resume(QubeName(running.name))
        for running in found:
            await self.links.provider_is_up(QubeName(running.name))
        if self.seeds is not None:
            await self.seeds.open()
        if self.standby is not None:
            self.standby.open()

    async def _remove_ended(self, names: Iterable[str]) -> None:
        """Disposables that ended while no daemon was there: gone with their machine, as always. One that was never
        started may still be."""
        for name in sorted(names):
            qube = self.host.store.system.qubes.get(QubeName(name))
            if qube is not None and qube.properties.get("auto_cleanup"):
                with _only_logged(f"{name}: it had ended"):
                    await self.remove(qube.name)

    async def autostart(self) -> None:
        """Hold disposables ready from now on, and start the qubes whose property ``autostart`` says so.

        One that fails does not keep the others.
        """
        await self.disposables.open()
        system = self.host.store.system
        names = [q.name for q in system.sorted_qubes() if q.klass.has_machine and resolve(system, q, "autostart").value]
        for result in await asyncio.gather(*map(self.start, names), return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("autostart: %s", result)

    async def leave(self) -> None:
        """The daemon ends, the machines stay."""
        self.links.close()
        await self.disposables.close()
        if self.standby is not None:
            await self.standby.close()
        if self.seeds is not None:
            await self.seeds.close()
        await asyncio.gather(*(s.leave() for s in self._supervisors.values()))

    async def stop_all(self, timeout_s: float = STOP_ALL_TIMEOUT_S) -> list[str]:
        """Shut everything down, net qubes after their clients, kill what does not follow; returns the killed."""
        left = {name for name, s in self._supervisors.items() if s.state.is_on}
        killed: list[str] = []
        while left:
            used = {net for name in left for net in [self._net_qube_of(name)] if net in left and net != name}
            # Without a loop somebody is always unused.
            names = sorted(left - used) or sorted(left)
            results = await asyncio.gather(*(self._stop_or_kill(name, timeout_s) for name in names))
            killed += [name for name, was_killed in zip(names, results, strict=True) if was_killed]
            left.difference_update(names)
        return killed

    def _net_qube_of(self, name: QubeName) -> QubeName | None:
        system = self.host.store.system
        if name not in system.qubes:
            return None
        value = resolve(system, system.get(name), "netvm").value
        return QubeName(str(value)) if value else None

    async def _stop_or_kill(self, name: QubeName, timeout_s: float) -> bool:
        supervisor = self._supervisors.get(name)
        if supervisor is None:
            # It ended by itself while others were stopped, and was removed.
            return False
        try:
            async with asyncio.timeout(timeout_s):
                await supervisor.shutdown(force=True)
            await supervisor.wait_ended(timeout_s)
        except QubesVMNotStartedError:
            return False
        except (QubesException, TimeoutError) as e:
            log.warning("%s: %s; killing it", name, e)
            with suppress(QubesVMNotStartedError):
                await supervisor.kill()
            return True
        return False

    # -- power

    def power_state(self, name: QubeName) -> PowerState:
        qube = self.host.store.system.get(name)
        if not qube.klass.has_machine:
            # admin-api §4: dom0 and qubes elsewhere always report Running.
            return PowerState.RUNNING
        supervisor = self._supervisors.get(name)
        return supervisor.state if supervisor else PowerState.HALTED

    def start_plan(self, name: QubeName) -> StartPlan:
        """What :meth:`start` would do now. :raise QubesException:"""
        emulated = Capability.HARDWARE_VIRTUALIZATION not in self.host.driver.capabilities
        return plan_start(self.host.store.system, name, self.host.kernels.get, emulated=emulated)

    async def provide_waiting(self, name: QubeName) -> None:
        """Have a machine that has rehearsed for the next start of this qube, if it can be a fork and one is wanted."""
        if self.seeds is not None and self.standby is not None:
            plan = self.start_plan(name)
            seed = await self.seeds.find(plan)
            if seed is not None:
                await self.standby.provide(plan, seed)

    async def make_ready(self, name: QubeName) -> None:
        """See :func:`insula.lifecycle.readiness.make_ready`; returns with the qube paused."""
        supervisor = self._started(name)
        await make_ready(supervisor)

    async def start(self, name: QubeName, cd: Path | None = None) -> None:
        supervisor = self._supervisor(name)
        image = None if cd is None else await asyncio.to_thread(cd_image, cd)
        if image is not None and supervisor.state is not PowerState.HALTED:
            raise QubesVMNotHaltedError(f"{name} is not off: a CD is put in when it starts")
        while supervisor.state in (PowerState.HALTED, PowerState.HALTING, PowerState.DYING):
            if supervisor.state is not PowerState.HALTED:
                await supervisor.wait_ended(self._shutdown_timeout_s(name))
                continue
            for net_qube in self.start_plan(name).net_qubes:
                await self.start(net_qube)
            async with self._alone(name):
                # Whoever asked at the same time may have been first: one start, both wait for it (MC-56).
                if supervisor.state is PowerState.HALTED:
                    plan = self.start_plan(name)
                    supervisor.begin(plan if image is None else with_cd(plan, image))
                elif image is not None:
                    raise QubesVMNotHaltedError(f"{name} was started by somebody else, without the CD")
            break
        await supervisor.wait_started()

    async def shutdown(self, name: QubeName, *, force: bool, wait: bool) -> None:
        supervisor = self._started(name)
        users = [] if force else self._running_users_of(name)
        if users:
            raise QubesVMInUseError(f"{name} provides the network of running qubes: {', '.join(users)}")
        await supervisor.shutdown(force=force)
        if wait:
            await supervisor.wait_ended(self._shutdown_timeout_s(name))

    def _shutdown_timeout_s(self, name: QubeName) -> float:
        system = self.host.store.system
        return float(resolve(system, system.get(name), "shutdown_timeout").value or 0)

    async def kill(self, name: QubeName) -> None:
        await self._started(name).kill()

    async def pause(self, name: QubeName) -> None:
        await self._started(name).pause()

    async def unpause(self, name: QubeName) -> None:
        await self._started(name).unpause()

    async def show_windows(self, name: QubeName, desktop: Mapping[str, str] | None) -> None:
        await self._started(name).show_windows(desktop)

    async def stats(self, name: QubeName) -> MachineStats | None:
        supervisor = self._supervisors.get(name)
        if supervisor is None or supervisor.running is None:
            return None
        try:
            return await supervisor.running.machine.stats()
        except MachineGone:
            return None

    def _machine(self, name: QubeName) -> Machine | None:
        supervisor = self._supervisors.get(name)
        return supervisor.running.machine if supervisor and supervisor.running else None

    def _session(self, name: QubeName) -> Session | None:
        supervisor = self._supervisors.get(name)
        return supervisor.session if supervisor else None

    def start_time(self, name: QubeName) -> float | None:
        supervisor = self._supervisors.get(name)
        return supervisor.running.started_at if supervisor and supervisor.running else None

    def console_log(self, name: QubeName) -> Path:
        """Console of the running machine, or the one kept of the last."""
        supervisor = self._supervisors.get(name)
        if supervisor and supervisor.running:
            return supervisor.running.machine.console_log
        return self.host.console_folder / f"{name}.console.log"

    def _running_users_of(self, name: QubeName) -> list[str]:
        return [
            other
            for other, supervisor in self._supervisors.items()
            if supervisor.state.is_on and other != name and self._net_qube_of(other) == name
        ]

    # -- seeds

    async def root_changed(self, template: QubeName) -> None:
        """The template's root has, or may have, a new content: have the seeds made from it renewed."""
        if self.seeds is not None:
            with _only_logged(f"seeds of {template}"):
                await self.seeds.root_changed(self._plans_on(template))

    async def want_seed(self, template: QubeName) -> None:
        """Have a seed for app qubes of this template made in the background, if there is none."""
        if self.seeds is not None:
            with _only_logged(f"seeds of {template}"):
                await self.seeds.want(self._app_plan(template))

    async def build_seed(self, name: QubeName) -> Seed:
        """The seed for a qube, or for an app qube with the defaults of a template; made now if there is none.

        :raise QubesException:
        """
        if self.seeds is None:
            raise QubesNotImplementedError("This daemon keeps no seeds")
        is_template = self.host.store.system.get(name).klass is Klass.TEMPLATEVM
        return await self.seeds.build(self._app_plan(name) if is_template else self.start_plan(name))

    def _app_plan(self, template: QubeName) -> StartPlan:
        emulated = Capability.HARDWARE_VIRTUALIZATION not in self.host.driver.capabilities
        return plan_app_of(self.host.store.system, template, self.host.kernels.get, emulated=emulated)

    def _plans_on(self, template: QubeName) -> list[StartPlan]:
        """How qubes that start from the template's root would be started, one for each kind of seed."""
        plans = []
        with suppress(QubesException):
            plans.append(self._app_plan(template))
        for qube in self.host.store.system.sorted_qubes():
            with suppress(QubesException):
                plan = self.start_plan(qube.name)
                if plan.root_owner == template and plan.kernel is not None:
                    plans.append(plan)
        return list({(p.seed_cmdline, p.memory_mib, p.vcpus, p.own_kernel.version): p for p in plans}.values())

    # -- existence

    async def create_disposable(
        self, template: QubeName, created_by: QubeName, features: Mapping[str, str] | None = None
    ) -> QubeName:
        return await self.disposables.create(template, created_by, features or {})

    async def preload_disposables(self, template: QubeName) -> None:
        await self.disposables.refill(template, wanted_ready(self.host.store.system).get(template, 0))

    async def create(self, request: CreateRequest) -> None:
        host = self.host
        async with self._alone(request.name):
            dispid = secrets.randbelow(MAX_DISPID + 1)
            system = plan_create(host.store.system, request, uuid.uuid4(), dispid)
            made: list[VolumeSpec] = []
            try:
                for volume in disks_of(system.get(request.name)):
                    await host.pool_of(volume).create(volume, first_content(volume))
                    # Only what this call made is removed again, never a volume that was there.
                    made.append(volume)
                # Others may have changed the system while volumes were made.
                created = plan_create(host.store.system, request, system.get(request.name).uuid, dispid)
                host.store.commit(created, is_synced=not request.disposable)
            except BaseException as e:
                for volume in made:
                    with suppress(StorageError):
                        await host.pool_of(volume).remove(volume)
                if isinstance(e, StorageError):
                    raise StoragePoolException(str(e)) from e
                raise
        host.publish("", "domain-add", vm=request.name)
        host.publish(request.name, "domain-create-on-disk")

    async def remove(self, name: QubeName) -> None:
        host = self.host
        async with self._alone(name):
            system = host.store.system
            qube = system.get(name)
            if self.power_state(name) is not PowerState.HALTED:
                raise QubesVMInUseError(f"{name} is running; stop it first")
            if qube.properties.get("installed_by_rpm"):
                raise QubesVMInUseError(f"{name} belongs to an installed package")
            after = system.without_qube(name)
            require_unborrowed(system, name)
            host.publish("", "domain-pre-delete", vm=name)
            host.store.commit(after)
            self._supervisors.pop(name, None)
            for volume in disks_of(qube):
                try:
                    await host.pool_of(volume).remove(volume)
                except (StorageError, QubesPoolNotFoundError) as e:
                    # The qube is gone; the next start of the daemon removes what is left.
                    log.error("%s: volume %s: %s", name, volume.name, e)
            # What its last machine wrote on its console is the user's as well; a later qube of that name has its own.
            (host.console_folder / f"{name}.console.log").unlink(missing_ok=True)
        host.publish("", "domain-delete", vm=name)

    # -- properties

    async def property_changed(self, qube: QubeName | None, name: str) -> None:
        if name in ("netvm", "default_netvm"):
            problems = []
            for client in [other for other in self._supervisors if qube in (None, other)]:
                try:
                    await self.links.follow(client)
                except QubesException as e:
                    # The others do not stay where they are not to be any more.
                    problems.append(str(e))
            if problems:
                raise QubesException("; ".join(problems))
            return
        if name == "label" and qube is not None and self.host.windows is not None:
            await self.host.windows.changed(qube)
            return
        supervisor = None if qube is None else self._supervisors.get(qube)
        if qube is None or name != "memory" or supervisor is None or supervisor.running is None:
            return
        if Capability.BALLOON in self.host.driver.capabilities:
            system = self.host.store.system
            memory = resolve(system, system.get(qube), "memory").value
            machine = supervisor.running.machine
            if machine.spec.devices:
                # They write to the memory by themselves: none of it can be taken away.
                return
            with suppress(HalError):
                await machine.set_memory(min(int(memory or 0), machine.spec.memory_mib))

    def ended_cleanly(self, qube: QubeName) -> bool:
        supervisor = self._supervisors.get(qube)
        return supervisor is not None and supervisor.ended_cleanly

    async def firewall_changed(self, qube: QubeName) -> None:
        await self.links.tell_firewall(qube)

    # -- supervisors

    def _supervisor(self, name: QubeName) -> Supervisor:
        if name not in self._supervisors:
            klass = self.host.store.system.get(name).klass
            self._supervisors[name] = Supervisor(self.host, name, klass, self._after_start, self._after_shutdown)
        return self._supervisors[name]

    def _on(self, name: QubeName) -> Running | None:
        """A qube that has a machine and a session process."""
        supervisor = self._supervisors.get(name)
        if supervisor is None or supervisor.running is None or supervisor.session is None:
            return None
        return Running(supervisor.running.machine, supervisor.session) if supervisor.state.is_on else None

    def _record_link(self, name: QubeName) -> None:
        supervisor = self._supervisors.get(name)
        if supervisor is not None and supervisor.running is not None:
            record = supervisor.running.record(self.host.driver.name, ready=True, link=self.links.note_of(name))
            self.host.store.put_machine(name, record.to_json())

    async def _after_start(self, name: QubeName) -> None:
        """Those who wait for a net qube are linked to it."""
        await self.links.provider_is_up(name)

    async def _after_shutdown(self, name: QubeName) -> None:
        """Its links are gone. A disposable that nobody named is gone with its machine; a template's seeds follow its
        root."""
        await self.links.end(name)
        qube = self.host.store.system.qubes.get(name)
        if qube is not None and qube.klass is Klass.TEMPLATEVM:
            await self.root_changed(name)
        if qube is not None and qube.properties.get("auto_cleanup"):
            try:
                await self.remove(name)
            except QubesException as e:
                log.error("%s: could not be removed after its end: %s", name, e)

    def _started(self, name: QubeName) -> Supervisor:
        self.host.store.system.get(name)
        supervisor = self._supervisors.get(name)
        if supervisor is None or not supervisor.state.is_on:
            raise QubesVMNotStartedError(f"{name} is not running")
        return supervisor


@contextmanager
def _only_logged(what: str) -> Iterator[None]:
    """For what is done on the side: its failure must not be that of the operation that led to it."""
    try:
        yield
    except (QubesException, StorageError, OSError) as e:
        log.warning("%s: %s", what, e)
