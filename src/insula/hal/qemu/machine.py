"""One machine under QEMU: its life from ``start_paused`` to its end.

How the end is known. QEMU is told to *wait* when the guest ends (``-action shutdown=pause``); its event says why,
that is kept as the verdict, and only then is it told to quit. A VMM that ends without a verdict has crashed. So the
reason is never guessed from an exit status, and a shutdown that nobody saw (no daemon was running) is found by
:meth:`QemuMachine.adopt`. The machine is *gone* when the process is: only then are its disks closed.

A guest that reboots has shut down cleanly and ends its machine with the detail ``reboot``; the lifecycle decides
about a new start.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import stat
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from insula.hal.driver import ExitKind, MachineExit, MachineSpec, MachineState, MachineStats
from insula.hal.errors import DriverError, HalError, MachineGone, SeedUnusable
from insula.hal.hostinfo import HostInfo
from insula.hal.preconditions import check_become, check_freeze
from insula.hal.qemu.command import BULK_MEMORY, FRAMES, Descriptors, channel_chardev, check_spec, disk_device, vmm_argv
from insula.hal.qemu.console import ConsoleLog, ConsoleReader
from insula.hal.qemu.descriptors import (
    CONSOLE_SOCKET,
    QMP_SOCKET,
    KeyFiles,
    MachineFiles,
    channel_socket,
    connect,
    explained,
    open_disk,
    remove_runtime_files,
    unlink_thrown_away,
)
from insula.hal.qemu.disk_swap import Leftovers, close_leftovers, swap_disks
from insula.hal.qemu.links import MachineLinks
from insula.hal.qemu.machine_model import model_digest
from insula.hal.qemu.migration import announce_disks, restore_state, save_state
from insula.hal.qemu.monitor import (
    DiskFailed,
    GuestEnded,
    GuestPanicked,
    GuestStopped,
    Monitor,
    MonitorEvent,
    RunState,
)
from insula.hal.qemu.page_returns import PageReturns
from insula.hal.qemu.passthrough import prepare
from insula.hal.qemu.plugged_memory import MachineMemory
from insula.hal.qemu.process import HostUser, ProcessIdentity, VmmProcess, is_named
from insula.hal.qemu.sandbox import vmm_uid
from insula.hal.qemu.seed_files import FileNote, LoadedSeed, Manifest, state_memory
from insula.hal.qemu.seeds import SeedCache, store

START_LIMIT_S = 30.0
"""From the start of the VMM to its greeting: 0.03 s on an idle machine, seconds under load."""
ADOPT_LIMIT_S = 60.0
"""For a VMM that runs already. It is somebody's qube, and is killed if it does not answer."""
KILL_QUIT_LIMIT_S = 1.0
"""How long a killed machine may take to close its disks before it is killed the hard way."""
CLOSE_LIMIT_S = 60.0
"""How long a VMM may take to close its disks after its guest has shut down."""
DRAIN_LIMIT_S = 1.0
"""For the monitor's last messages after the process has ended; its socket has reached its end by then."""
CHANNEL_LIMIT_S = 5.0
"""For QEMU to take a channel's new client, or to notice that the last one left, on a busy host."""
CHANNEL_LOOKS = 100
"""So often it is asked at least: a VMM that gets no CPU for all of that time has noticed nothing yet."""
CHANNEL_POLL_S = 0.002
LEFTOVERS_DELAY_S = 1.0
"""After a machine that waited goes on as a qube: a start, and a first command, are over by then."""

LOGGED_OUTPUT = 2000
"""Characters of what a VMM printed that go to the log; the first are the ones that tell something."""
MIN_BALLOON_MIB = 16
"""Less, and any guest kernel dies."""

_ENDS = {
    RunState.SHUTDOWN: MachineExit(ExitKind.SHUTDOWN, "while no daemon was watching"),
    RunState.GUEST_PANICKED: MachineExit(ExitKind.CRASHED, "the guest's kernel panicked"),
    RunState.INTERNAL_ERROR: MachineExit(ExitKind.CRASHED, "the accelerator failed (internal error)"),
}
"""Run states that no guest comes back from."""


class QemuMachine:
    """See :class:`insula.hal.driver.Machine`; made by :class:`insula.hal.qemu.driver.QemuDriver`."""

    def __init__(self, spec: MachineSpec, host: HostInfo, seeds: SeedCache, page_returns: PageReturns) -> None:
        self._spec = spec
        self._host = host
        self._seeds = seeds
        self._page_returns = page_returns
        self._state = MachineState.DEFINED
        self._life = asyncio.Lock()
        """Held while the machine starts or is killed."""
        self._channels = {name: asyncio.Lock() for name in spec.channels}
        self._ended = asyncio.Event()
        self._exit: MachineExit | None = None
        self._verdict: MachineExit | None = None
        """How the machine ends, known before its process has gone."""
        self._released = False
        self._owns_folder = False
        """Whether the sockets in the run-time folder are this machine's."""
        self._is_pausing = False
        self._reported: set[DiskFailed] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logging.getLogger(f"{__name__}.{spec.name}")
        self._console_log = ConsoleLog(spec.runtime_dir)
        self._console: ConsoleReader | None = None
        self._monitor = Monitor(spec.name, self._on_event)
        self._links = MachineLinks(spec, self._monitor, self._host_user(), self._require_started)
        self._frames = MachineMemory(FRAMES, self._monitor, self._require_started)
        self._bulk_memory = MachineMemory(BULK_MEMORY, self._monitor, self._require_started)
        self._process: VmmProcess | None = None
        self._keys = KeyFiles()
        self._fdsets: tuple[tuple[int, ...], ...] = ()
        """Where the VMM has the files of each disk it was started with."""
        self._leftovers: Leftovers | None = None
        """Of the placeholders it had, until it runs."""
        self._memory: int | None = None
        """Memory file of a freezable machine."""

    # What it is

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    @property
    def state(self) -> MachineState:
        return self._state

    @property
    def console_log(self) -> Path:
        return self._console_log.path

    def record(self) -> Mapping[str, str | int]:
        return {} if self._process is None else self._process.identity.record()

    # Begin

    async def start_paused(self) -> None:
        async with self._life:
            if self._state is not MachineState.DEFINED:
                self._require_alive()
                raise DriverError(f"machine {self._spec.name!r} was started already")
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._undo_start)
                process = await self._boot() if self._spec.seed is None else await self._fork(self._spec.seed)
                undo.pop_all()
            self._state = MachineState.PAUSED
            self._spawn(self._watch(process), "watch")

    async def _boot(self) -> VmmProcess:
        process, _ = await self._launch(None)
        if await self._monitor.run_state() is not RunState.STOPPED:
            raise DriverError("QEMU did not start paused")
        return process

    async def _fork(self, folder: Path) -> VmmProcess:
        seed = await self._seeds.get(folder)
        if seed.manifest.model != model_digest(self._spec, self._host):
            raise SeedUnusable(f"machine {self._spec.name!r} is built differently from the one frozen in {folder}")
        process, fds = await self._launch(seed)
        assert fds.state is not None
        try:
            await restore_state(self._monitor, fds.state)
            await announce_disks(self._monitor, self._spec.disks)
        except HalError as error:
            raise SeedUnusable(f"the machine frozen in {folder} cannot be forked: {error}", process.output()) from error
        unlink_thrown_away(self._spec)
        return process

    async def _launch(self, seed: LoadedSeed | None) -> tuple[VmmProcess, Descriptors]:
        spec, host = self._spec, self._host
        user = self._host_user()
        facts = host.sandbox_facts()
        if spec.devices:
            devices = await asyncio.to_thread(prepare, spec, None if user is None else user.uid)
            facts = replace(facts, devices=devices)
        with MachineFiles(spec, None if user is None else user.uid, seed) as files:
            self._owns_folder, self._keys, self._memory = True, files.keys, files.memory
            self._fdsets = tuple(disk.layers for disk in files.descriptors.disks)
            # Connected before the VMM runs: it finds us waiting, and an early death of it shows as end of file.
            try:
                self._console = ConsoleReader(self._console_log, connect(spec.runtime_dir / CONSOLE_SOCKET))
                self._console_log.open(fresh=True)
                monitor = connect(spec.runtime_dir / QMP_SOCKET)
            except OSError as error:
                raise DriverError(f"cannot use run-time folder {spec.runtime_dir}", str(error)) from error
            try:
                argv = vmm_argv(spec, files.descriptors, host.accelerator, PurePosixPath(host.qemu.path or ""))
                inherited, launch = files.descriptors.numbers(), None
                # (A bubblewrap that has rights of its own would lose them.)
                is_plain = not Path(facts.bwrap).stat().st_mode & stat.S_ISUID
                if seed is not None and files.descriptors.memory is not None and is_plain:
                    launch = partial(self._page_returns.start, memory=files.descriptors.memory)
                process = await VmmProcess.spawn(facts, argv, inherited, files.status, user, launch)
                self._process = process
            except BaseException:
                monitor.close()
                raise
        self._console.start()
        try:
            await self._monitor.connect(monitor, START_LIMIT_S)
        except DriverError as error:
            raise DriverError(f"QEMU did not start: {error}", process.output() or error.detail) from error
        # QEMU has read them before it listened.
        self._keys.wipe()
        return process, files.descriptors

    async def _undo_start(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
        await self._finish(MachineExit(ExitKind.CRASHED, "did not start"))

    @classmethod
    async def adopt(
        cls,
        spec: MachineSpec,
        host: HostInfo,
        seeds: SeedCache,
        page_returns: PageReturns,
        record: Mapping[str, str | int],
    ) -> QemuMachine | None:
        """See :meth:`insula.hal.driver.Driver.adopt`.

        :raise DriverError: the process is there, but runs another machine; it is left alone.
        """
        identity = ProcessIdentity.from_record(record)
        process = None if identity is None else VmmProcess.attach(identity)
        if process is None:
            remove_runtime_files(spec.runtime_dir)
            return None
        if not is_named(process.identity.pid, str(spec.uuid)):
            process.close()
            raise DriverError(f"process {process.identity.pid} does not run machine {spec.uuid}")
        machine = cls(spec, host, seeds, page_returns)
        machine._process = process
        async with AsyncExitStack() as undo:
            undo.push_async_callback(machine.release)
            if not await machine._reconnect():
                # It is the process we recorded, and nobody can talk to it any more: it only holds disks and memory.
                machine._log.warning("VMM %d does not answer; killing it", process.identity.pid)
                process.kill()
                await process.wait()
                remove_runtime_files(spec.runtime_dir)
                return None
            undo.pop_all()
        machine._state = MachineState.PAUSED
        machine._owns_folder = True
        machine._spawn(machine._watch(process), "watch")
        await machine._look_at_state()
        return machine

    async def _reconnect(self) -> bool:
        """Connect monitor and console of an adopted machine; False if it does not answer."""
        folder = self._spec.runtime_dir
        try:
            await self._monitor.connect(connect(folder / QMP_SOCKET), ADOPT_LIMIT_S)
            self._console = ConsoleReader(self._console_log, connect(folder / CONSOLE_SOCKET))
        except (HalError, OSError) as error:
            self._log.warning("monitor: %s", error)
            return False
        self._console_log.open(fresh=False)
        self._console.start()
        return True

    async def become(self, spec: MachineSpec) -> None:
        async with self._life:
            self._require_started()
            own = self._spec
            check_become(own, self._state, spec)
            check_spec(spec)
            if model_digest(spec, self._host) != model_digest(own, self._host):
                raise DriverError(f"machine {spec.name!r} is built differently from the one that waits")
            keys = KeyFiles()
            with ExitStack() as stack, explained(f"machine {spec.name!r}"):
                stack.callback(keys.wipe)
                fds = [open_disk(stack, keys, disk.source) for disk in spec.disks]
                self._leftovers = await swap_disks(self._monitor, own.disks, self._fdsets, spec.disks, fds)
                own.runtime_dir.rename(spec.runtime_dir)
                unlink_thrown_away(spec)
            self._spec = replace(spec, uuid=own.uuid, host_number=own.host_number)
            self._links = MachineLinks(self._spec, self._monitor, self._host_user(), self._require_started)
            self._log = logging.getLogger(f"{__name__}.{spec.name}")
            self._console_log.moved(spec.runtime_dir)
            self._log.info("was in waiting as %s", own.name)

    # While it runs

    async def resume(self) -> None:
        self._require_started()
        await self._execute("cont")
        self._reported.clear()
        if self._state is MachineState.PAUSED:
            self._state = MachineState.RUNNING
        leftovers, self._leftovers = self._leftovers, None
        if leftovers is not None:
            self._spawn(self._close_later(leftovers), "placeholders")

    async def _close_later(self, leftovers: Leftovers) -> None:
        """QEMU's main loop, which a guest waits for when it reads or writes, has better to do at first."""
        await asyncio.sleep(LEFTOVERS_DELAY_S)
        # One that ends just then takes them along.
        with suppress(MachineGone):
            await close_leftovers(self._monitor, leftovers)

    async def pause(self) -> None:
        self._require_started()
        self._is_pausing = True
        try:
            await self._execute("stop")
            if self._state is MachineState.RUNNING:
                self._state = MachineState.PAUSED
        finally:
            self._is_pausing = False

    async def request_shutdown(self) -> None:
        self._require_started()
        await self._execute("system_powerdown")

    async def set_memory(self, mib: int) -> None:
        self._require_started()
        if not MIN_BALLOON_MIB <= mib <= self._spec.memory_mib:
            raise DriverError(f"memory of {mib} MiB is not within {MIN_BALLOON_MIB}…{self._spec.memory_mib} MiB")
        await self._execute("balloon", {"value": mib << 20})

    async def resize_disk(self, disk: str, size: int) -> None:
        self._require_started()
        names = [entry.name for entry in self._spec.disks]
        if disk not in names:
            raise DriverError(f"machine {self._spec.name!r} has no disk {disk!r}")
        node = (await self._monitor.disks()).get(disk_device(names.index(disk)))
        if node is None:
            raise DriverError(f"QEMU does not tell what is behind disk {disk!r} of machine {self._spec.name!r}")
        await self._execute("block_resize", {"node-name": node.name, "size": size})

    @property
    def links(self) -> MachineLinks:
        """Its network interface, and those it has for its clients. :raise DriverError: it was not started."""
        self._require_started()
        return self._links

    async def open_frames(self) -> int:
        self._require_started()
        if self._spec.freezable:
            raise DriverError(f"machine {self._spec.name!r} is to be frozen, and gets no frame memory")
        return await self._frames.open()

    async def open_display(self) -> socket.socket:
        self._require_started()
        if not self._spec.has_display:
            raise DriverError(f"machine {self._spec.name!r} has no screen")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                await self._monitor.show_screen(theirs)
            except BaseException:
                ours.close()
                raise
        return ours

    async def open_bulk_memory(self) -> int:
        self._require_started()
        if self._spec.freezable:
            raise DriverError(f"machine {self._spec.name!r} is to be frozen, and shares no memory")
        return await self._bulk_memory.open()

    async def has_frames(self) -> bool:
        self._require_started()
        return await self._frames.is_plugged()

    def _host_user(self) -> HostUser | None:
        host = self._host
        number = self._spec.host_number or self._spec.qid
        return HostUser(vmm_uid(number), host.vmm_groups) if host.daemon_is_root else None

    async def stats(self) -> MachineStats:
        process = self._require_started()
        assigned_kib = await self._monitor.balloon_bytes() // 1024
        stats = await asyncio.to_thread(process.stats, assigned_kib, self._spec.vcpus)
        if stats is None:
            raise MachineGone(f"machine {self._spec.name!r} has ended")
        return stats

    async def open_channel(self, name: str) -> socket.socket:
        self._require_started()
        if name not in self._channels:
            raise DriverError(f"machine {self._spec.name!r} has no channel {name!r}")
        chardev = channel_chardev(self._spec.channels.index(name))
        async with self._channels[name]:
            # QEMU alone knows whether a client is there: the last one may have been handed to another process.
            if not await self._chardev_becomes(chardev, connected=False):
                raise DriverError(f"channel {name!r} of machine {self._spec.name!r} is in use")
            try:
                client = connect(self._spec.runtime_dir / channel_socket(name))
            except OSError as error:
                raise DriverError(f"channel {name!r} of machine {self._spec.name!r} refused", str(error)) from error
            with ExitStack() as undo:
                undo.callback(client.close)
                if not await self._chardev_becomes(chardev, connected=True):
                    raise DriverError(f"QEMU did not take the client of channel {name!r}")
                undo.pop_all()
        return client

    async def _chardev_becomes(self, chardev: str, *, connected: bool) -> bool:
        """Wait, with a limit, until a chardev has a client or has none; QEMU has no event for it."""
        deadline = asyncio.get_running_loop().time() + CHANNEL_LIMIT_S
        for look in itertools.count(1):
            if await self._monitor.is_chardev_connected(chardev) is connected:
                return True
            if look >= CHANNEL_LOOKS and asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(CHANNEL_POLL_S)
        return False

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None) -> None:
        await self._monitor.execute(command, arguments)

    # Events

    def _on_event(self, event: MonitorEvent) -> None:
        match event:
            case GuestEnded(by_guest=True, reason="guest-reset"):
                self._conclude(MachineExit(ExitKind.SHUTDOWN, "reboot"))
            case GuestEnded(by_guest=True, reason="guest-panic") | GuestPanicked():
                self._conclude(_ENDS[RunState.GUEST_PANICKED])
            case GuestEnded(by_guest=True):
                self._conclude(MachineExit(ExitKind.SHUTDOWN))
            case GuestEnded(reason=reason) if self._verdict is None:
                self._verdict = MachineExit(ExitKind.CRASHED, f"the VMM was told to end ({reason})")
            case GuestStopped() if not self._is_pausing and self._verdict is None:
                self._spawn(self._look_at_state(), "stopped")
            case DiskFailed() if event not in self._reported:
                # Once until the guest goes on: the guest decides how often this happens.
                self._reported.add(event)
                problem = "the host's disk is full" if event.is_full else "input/output error"
                self._log.warning("disk %s: %s", event.device, problem)

    async def _look_at_state(self) -> None:
        """The guest stands still and we did not ask for it, or it is an adopted one: find out why."""
        try:
            state = await self._monitor.run_state()
        except HalError as error:
            self._log.debug("state unknown: %s", error)
            return
        if state in _ENDS:
            self._conclude(_ENDS[state])
        elif self._state is not MachineState.GONE:
            self._state = MachineState.RUNNING if state is RunState.RUNNING else MachineState.PAUSED

    # End

    def _conclude(self, verdict: MachineExit) -> None:
        """The guest has ended; let the VMM close its disks and go."""
        if self._verdict is None:
            self._verdict = verdict
            self._spawn(self._quit(CLOSE_LIMIT_S), "quit")

    async def _quit(self, limit_s: float) -> None:
        process = self._process
        if process is None:
            return
        try:
            async with asyncio.timeout(limit_s):
                with suppress(HalError):
                    await self._monitor.execute("quit", limit_s=limit_s)
                await process.wait()
        except TimeoutError:
            kind = ExitKind.KILLED if self._verdict and self._verdict.kind is ExitKind.KILLED else ExitKind.CRASHED
            self._verdict = MachineExit(kind, f"did not close its disks within {limit_s:.0f} s")
            process.kill()

    async def kill(self) -> None:
        async with self._life:
            if self._state is MachineState.DEFINED:
                await self._finish(MachineExit(ExitKind.KILLED, "never started"))
            if self._state is MachineState.GONE:
                return
            self._require_alive()
            # A verdict that is there already stands: what the guest closed is closed.
            self._verdict = self._verdict or MachineExit(ExitKind.KILLED)
            await self._quit(KILL_QUIT_LIMIT_S)
            await self.wait_gone()

    async def freeze(self, folder: Path) -> None:
        with ExitStack() as stack:
            async with self._life:
                self._require_started()
                check_freeze(self._spec, self._state, folder)
                if self._memory is None:
                    raise DriverError(f"machine {self._spec.name!r} was started by an earlier daemon")
                memory, state = os.dup(self._memory), state_memory()
                for fd in (memory, state):
                    stack.callback(os.close, fd)
                manifest = await self._save_state(state)
            await store(folder, manifest, memory, state)

    async def _save_state(self, state: int) -> Manifest:
        """The device state goes to a memory file; the VMM is gone after it, however that went."""
        verdict, limit_s = MachineExit(ExitKind.CRASHED, "could not be frozen"), KILL_QUIT_LIMIT_S
        try:
            size = await save_state(self._monitor, state)
            # What its system wrote to the disk belongs to the seed: that is closed as after a shutdown.
            verdict, limit_s = MachineExit(ExitKind.FROZEN), CLOSE_LIMIT_S
        finally:
            self._verdict = self._verdict or verdict
            await self._quit(limit_s)
            await self.wait_gone()
        return Manifest(
            qemu=self._host.qemu.version_text,
            model=model_digest(self._spec, self._host),
            memory=FileNote(self._spec.memory_mib << 20, ""),
            state=FileNote(size, ""),
        )

    async def wait_gone(self) -> MachineExit:
        await self._ended.wait()
        if self._exit is None:
            raise DriverError(f"machine {self._spec.name!r} was released and is no longer watched")
        return self._exit

    async def _watch(self, process: VmmProcess) -> None:
        """Wait for the process's end, hear the monitor out, and conclude."""
        await process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_LIMIT_S):
                await self._monitor.wait_closed()
        crash = MachineExit(ExitKind.CRASHED, "the VMM died")
        await self._finish(self._verdict or crash)

    async def _finish(self, ending: MachineExit) -> None:
        """Nothing runs any more: clean up, then tell."""
        if self._console is not None:
            self._console.finish()
        if self._process is not None and (output := self._process.output()):
            self._log.info("the VMM said: %s", output[:LOGGED_OUTPUT])
        if self._process is not None:
            await self._process.wait_sandbox()
        self._links.ended()
        await self._close_handles()
        if self._owns_folder:
            remove_runtime_files(self._spec.runtime_dir)
        self._state = MachineState.GONE
        self._exit = ending
        self._log.info("gone: %s %s", ending.kind.value, ending.detail)
        self._ended.set()

    async def release(self) -> None:
        """Let go of the machine without ending it; a later daemon adopts it. Idempotent."""
        if self._released or self._state is MachineState.GONE:
            return
        self._released = True
        await self._close_handles()
        self._ended.set()

    async def _close_handles(self) -> None:
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._links.close()
        await self._monitor.close()
        if self._console is not None:
            self._console.close()
        self._console_log.close()
        self._keys.wipe()
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None
        self._frames.close()
        self._bulk_memory.close()
        if self._process is not None:
            self._process.close()

    # Bookkeeping

    def _spawn(self, work: Coroutine[None, None, None], what: str) -> None:
        task = asyncio.create_task(work, name=f"machine {self._spec.name} {what}")
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("%s failed", task.get_name(), exc_info=error)

    def _require_alive(self) -> None:
        if self._state is MachineState.GONE or self._released:
            raise MachineGone(f"machine {self._spec.name!r} has ended")

    def _require_started(self) -> VmmProcess:
        self._require_alive()
        if self._process is None or self._state is MachineState.DEFINED:
            raise DriverError(f"machine {self._spec.name!r} was not started")
        return self._process
