"""One qube's life while it is on: the state machine, and the two tasks that watch its machine and its session.

States are those of :class:`insula.model.state.PowerState`; only this file changes them::

    Halted ── start ──► Transient ──► Running ◄── pause / unpause ──► Paused
                            │            │  └─ shutdown ──► Halting
                            └────────────┴──── machine gone ──► Dying ──► Halted
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from insula.hal.capabilities import Capability
from insula.hal.driver import ExitKind, MachineExit, MachineState
from insula.hal.errors import HalError
from insula.lifecycle.host import Host, Session, log
from insula.lifecycle.plan import StartPlan
from insula.lifecycle.running import RunningQube
from insula.lifecycle.start import open_session, start_qube
from insula.lifecycle.stop import clear_up, end_now, press_until_gone, settle
from insula.model.errors import (
    InsulaError,
    QubesException,
    QubesNotImplementedError,
    QubesVMNotPausedError,
    QubesVMNotRunningError,
    QubesVMNotStartedError,
    QubesVMShutdownTimeoutError,
)
from insula.model.klass import Klass
from insula.model.names import QubeName
from insula.model.qubesdb_keys import CLOCK_KEY
from insula.model.state import PowerState

SESSION_RESTARTS = 5
"""How often in a row a session process is replaced; one that lived SESSION_STABLE_S starts the count anew."""
SESSION_STABLE_S = 60.0
SESSION_RESTART_DELAY_S = 0.25
CLOCK_LIMIT_S = 1.0
"""For a session process to take a message; it does nothing that takes long."""


class Supervisor:
    """What the daemon knows of one qube that is on (or becoming so, or just ended)."""

    def __init__(
        self,
        host: Host,
        name: QubeName,
        klass: Klass,
        after_start: Callable[[QubeName], Awaitable[None]],
        after_shutdown: Callable[[QubeName], Awaitable[None]],
    ) -> None:
        """``after_start`` is called, with its name, whenever the qube is up; ``after_shutdown``, when it has ended and
        is settled. Neither raises."""
        self.host = host
        self._after_start = after_start
        self._after_shutdown = after_shutdown
        self.name = name
        self.klass = klass
        self._state = PowerState.HALTED
        self.running: RunningQube | None = None
        self.session: Session | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._pressing: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self.ended_cleanly = False
        """Whether the last machine was shut down by its guest."""
        self._unsettled: tuple[RunningQube, MachineExit] | None = None
        """The last machine, if what it wrote could be neither kept nor discarded yet."""

    @property
    def state(self) -> PowerState:
        """A machine may stand still untold: where the host cannot extend its disk. `unpause` lets it go on."""
        stands_still = self.running is not None and self.running.machine.state is MachineState.PAUSED
        if stands_still and self._state in (PowerState.RUNNING, PowerState.HALTING):
            return PowerState.PAUSED
        return self._state

    # -- starting

    def begin(self, plan: StartPlan) -> None:
        """Begin a start; only from Halted. The start is a task of its own: a client that goes away does not stop it."""
        assert self.state is PowerState.HALTED
        self._state = PowerState.TRANSIENT
        self._ended.clear()
        self._starting = asyncio.create_task(self._start(plan), name=f"start {self.name}")
        # Its failure is published and told to those who wait; nobody needs to be waiting.
        self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def wait_started(self) -> None:
        """Wait for the start that is under way, if one is; raises what it raised."""
        starting = self._starting
        if starting is None:
            return
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if starting.cancelled() and not (caller and caller.cancelling()):
                raise QubesException(f"The start of {self.name} was ended by a kill") from None
            raise

    async def _start(self, plan: StartPlan) -> None:
        host = self.host
        host.publish(self.name, "domain-pre-start", start_guid="None", mem_required=str(plan.memory_mib * 1024 * 1024))
        try:
            await self._settle_last()
            running, session = await start_qube(host, plan)
        except BaseException as e:
            self._start_failed(str(e) if isinstance(e, InsulaError) else "internal error")
            raise
        self._starting = None
        self._take(running, session)
        self._state = PowerState.RUNNING
        host.publish(self.name, "domain-start", start_guid="None")
        await self._after_start(self.name)

    async def _settle_last(self) -> None:
        """:raise QubesException: what the last machine wrote can still not be settled; nothing is started over it."""
        if self._unsettled is None:
            return
        running, end = self._unsettled
        problems = await settle(self.host, running, self.klass, end)
        if problems:
            raise QubesException(f"{self.name} could not be settled after its last end: {'; '.join(problems)}")
        self._unsettled = None

    def _start_failed(self, reason: str) -> None:
        self._state = PowerState.HALTED
        self._starting = None
        self._ended.set()
        self.host.publish(self.name, "domain-start-failed", reason=reason)

    async def adopt(self, running: RunningQube) -> None:
        """Take over a machine that an earlier daemon started."""
        self._ended.clear()
        if self.host.windows is not None:
            await self.host.windows.adopt(self.name, running.machine)
        session = await open_session(self.host, running.machine)
        self._take(running, session)
        self._state = PowerState.PAUSED if running.machine.state is MachineState.PAUSED else PowerState.RUNNING
        await self._show_windows_again()

    def _take(self, running: RunningQube, session: Session) -> None:
        self.running, self.session = running, session
        self._watching = asyncio.create_task(self._watch(running), name=f"watch {self.name}")

    # -- while it is on

    async def _watch(self, running: RunningQube) -> None:
        keeper = asyncio.create_task(self._keep_session(running), name=f"session of {self.name}")
        try:
            end = await running.machine.wait_gone()
        finally:
            self._stop_pressing()
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await self._finish(running, end)

    async def _keep_session(self, running: RunningQube) -> None:
        """Replace the session process when it dies; give up when it keeps dying (the qube runs on, mute)."""
        loop = asyncio.get_running_loop()
        failures = 0
        while self.session is not None:
            since = loop.time()
            why = await self.session.wait_closed()
            failures = 1 if loop.time() - since > SESSION_STABLE_S else failures + 1
            if failures > SESSION_RESTARTS:
                log.error("%s: session process keeps ending (%s); no more calls until it is restarted", self.name, why)
                return
            # A machine that ends takes its session along, and is seen to be gone only a moment later.
            await asyncio.sleep(SESSION_RESTART_DELAY_S * failures)
            if running.machine.state is MachineState.GONE:
                return
            log.warning("%s: session process ended (%s), starting another", self.name, why)
            try:
                self.session = await open_session(self.host, running.machine)
            except (OSError, HalError) as e:
                log.error("%s: cannot start a session process: %s", self.name, e)
                return

    async def _finish(self, running: RunningQube, end: MachineExit) -> None:
        self._state = PowerState.DYING
        self.ended_cleanly = end.kind is ExitKind.SHUTDOWN
        self.host.publish(self.name, "domain-stopped")
        if self.host.windows is not None:
            await self.host.windows.end(self.name)
        if self.session is not None:
            await self.session.close()
        problems = await clear_up(self.host, running, self.klass, end)
        self._unsettled = (running, end) if problems else None
        for problem in problems:
            log.error("%s: after its end: %s; tried again at its next start", self.name, problem)
        log.info("%s: %s %s", self.name, end.kind.value, end.detail)
        self.running = self.session = None
        self._state = PowerState.HALTED
        self.host.publish(self.name, "domain-shutdown")
        try:
            await self._after_shutdown(self.name)
        finally:
            self._ended.set()

    # -- what a user asks

    async def shutdown(self, *, force: bool) -> None:
        """Ask the guest to power off; returns when asked."""
        await self.wait_started()
        if self.state is PowerState.PAUSED:
            if not force:
                raise QubesVMNotRunningError(f"{self.name} is paused; unpause it first, or use force")
            await self.unpause()
        running = self._require_running()
        self.host.publish(self.name, "domain-pre-shutdown", force=str(force))
        self._state = PowerState.HALTING
        try:
            await running.machine.request_shutdown()
        except HalError as e:
            if self.running is running:
                self._state = PowerState.RUNNING
                self.host.publish(self.name, "domain-shutdown-failed", reason=str(e))
                raise QubesException(f"Could not ask {self.name} to shut down: {e}") from e
        self._stop_pressing()
        self._pressing = asyncio.create_task(press_until_gone(running.machine), name=f"power button of {self.name}")

    def _stop_pressing(self) -> None:
        if self._pressing is not None:
            self._pressing.cancel()
            self._pressing = None

    async def wait_ended(self, timeout_s: float) -> None:
        """:raise QubesVMShutdownTimeoutError: still on after that time; it is left as it is."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            self._stop_pressing()
            if self._state is PowerState.HALTING:
                self._state = PowerState.RUNNING
            raise QubesVMShutdownTimeoutError(f"{self.name} did not shut down within {timeout_s:g} s") from None

    async def kill(self) -> None:
        """End the machine now, or the start that is under way; returns after the shutdown events."""
        if self._starting is not None:
            starting = self._starting
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            if self._starting is starting:
                # Cancelled before its first step: it undid nothing because it had done nothing.
                self._start_failed("ended by a kill")
            return
        if self.running is None:
            raise QubesVMNotStartedError(f"{self.name} is not running")
        try:
            await end_now(self.running)
        except HalError as e:
            raise QubesException(f"Could not end {self.name}: {e}") from e
        await self._ended.wait()

    async def pause(self) -> None:
        running = self._require_running()
        self.host.publish(self.name, "domain-pre-paused")
        await self._machine_call(running.machine.pause())
        self._state = PowerState.PAUSED
        self.host.publish(self.name, "domain-paused")
        if self.host.windows is not None:
            await self.host.windows.hide(self.name)

    async def unpause(self) -> None:
        running = self.running
        if self.state is not PowerState.PAUSED or running is None:
            raise QubesVMNotPausedError(f"{self.name} is not paused")
        self.host.publish(self.name, "domain-pre-unpaused")
        await self._tell_time()
        # It may have been killed meanwhile, and says so.
        await self._machine_call(running.machine.resume())
        self._state = PowerState.RUNNING
        self.host.publish(self.name, "domain-unpaused")
        await self._show_windows_again()

    # -- its windows

    async def show_windows(self, desktop: Mapping[str, str] | None) -> None:
        """:raise QubesException: they cannot be shown."""
        if self.host.windows is None or Capability.FRAMES not in self.host.driver.capabilities:
            raise QubesNotImplementedError("No windows can be shown here")
        running = self._require_running()
        if self.session is None:
            raise QubesException(f"{self.name} cannot be told to have windows")
        await self.host.windows.show(self.name, running.machine, self.session, desktop)

    async def _show_windows_again(self) -> None:
        if self.host.windows is not None and self.session is not None and self._state is PowerState.RUNNING:
            await self.host.windows.show_again(self.name, self._require_running().machine, self.session)

    async def _tell_time(self) -> None:
        """The clock of a machine that stands still does so too. Told before it goes on: so its agent hears of the time
        before it hears of a command."""
        if self.session is None:
            return
        try:
            async with asyncio.timeout(CLOCK_LIMIT_S):
                await self.session.set_key(CLOCK_KEY, str(time.time_ns()).encode("ascii"))
        except OSError as e:
            log.warning("%s: its clock is late, its session process does not hear: %s", self.name, e or "no answer")

    async def _machine_call(self, call: Awaitable[None]) -> None:
        try:
            await call
        except HalError as e:
            raise QubesException(f"{self.name}: {e}") from e

    def _require_running(self) -> RunningQube:
        if self.state is PowerState.HALTED:
            raise QubesVMNotStartedError(f"{self.name} is not running")
        if self.running is None or self.state not in (PowerState.RUNNING, PowerState.HALTING):
            raise QubesVMNotRunningError(f"{self.name} is {self.state.value.lower()}, not running")
        return self.running

    async def leave(self) -> None:
        """The daemon ends, the machine stays: stop watching it. The session process ends with the daemon."""
        for task in (self._starting, self._watching):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.session is not None:
            await self.session.close()
