"""Calls between qubes, put together: what the broker needs of the system, its policy, its services and its log."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import insula
from insula.admin import api
from insula.admin.call import Context
from insula.admin.dispatch import Dispatcher, published_error
from insula.admin.guest_reports import GuestReports
from insula.admin.leases import Options
from insula.admin.notifications import Notifications
from insula.admin.policy_calls import PolicyCalls
from insula.admin.qube_calls import QubeCalls
from insula.daemon.pastes import PasteJudge
from insula.daemon.paths import Paths
from insula.daemon.prompt_program import PromptProgram
from insula.daemon.sound import Sound, desktops
from insula.hal.errors import HalError
from insula.model.errors import QubesException
from insula.model.names import QubeName
from insula.model.properties import view
from insula.model.state import PowerState
from insula.model.system import System
from insula.policy.current import CurrentPolicy
from insula.policy.decisions import Allow, Request
from insula.policy.engine import evaluate, settle
from insula.policy.ruleset import Policy
from insula.policy.snapshot import UUID_PREFIX, Snapshot
from insula.policy.store import PolicyStore
from insula.policy.system_facts import snapshot_of
from insula.preload.forks import PreloadedParent
from insula.rpc.ask import Prompts
from insula.rpc.broker import Broker, QubeNow
from insula.rpc.call_log import CallLog
from insula.rpc.host_services import HostServices
from insula.sound.launcher import carry
from insula.storage.pool import StorageError

log = logging.getLogger("insula.daemon")


class SystemQubes:
    """Implements :class:`insula.rpc.broker.Qubes`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._system: System | None = None
        self._states: tuple[PowerState, ...] = ()
        self._snapshot = Snapshot(())

    def snapshot(self) -> Snapshot:
        """The same value until the system or a power state changes, so a question costs little."""
        system = self._context.store.system
        power = self._context.engine.power_state
        names = tuple(system.qubes)
        states = tuple(map(power, names))
        if self._system is not system:
            self._snapshot = snapshot_of(system, power)
        elif self._states != states:
            # Machines come and go more often than the configuration changes, of which all else is made.
            now = dict(zip(names, states, strict=True))
            facts = self._snapshot.qubes.values()
            self._snapshot = Snapshot(replace(qube, power_state=now[QubeName(qube.name)].value) for qube in facts)
        self._system, self._states = system, states
        return self._snapshot

    def find(self, name: str) -> QubeNow | None:
        qube = self._context.store.system.qubes.get(QubeName(name))
        if qube is None:
            return None
        return QubeNow(f"{UUID_PREFIX}{qube.uuid}", self._context.engine.power_state(qube.name).value)

    async def start(self, name: str) -> None:
        with _published():
            await self._context.engine.start(QubeName(name))

    def disposable(self, base: str, opener: str) -> AbstractAsyncContextManager[str]:
        return self._disposable(base, opener)

    @asynccontextmanager
    async def _disposable(self, base: str, opener: str) -> AsyncIterator[str]:
        system = self._context.store.system
        async with AsyncExitStack() as ends:
            with _published():
                name = await ends.enter_async_context(
                    self._context.leases.made(
                        self._context, system.get(opener), QubeName(base), options_for(system, opener)
                    )
                )
                await self._context.engine.start(name)
            yield name


def options_for(system: System, opener: str) -> Options:
    """What a disposable is given beside what it is made from: who has no network gets none by opening one (MC-34)."""
    qube = system.get(opener)
    is_offline = qube.klass.has_machine and view(system, qube).vm("netvm") is None
    return Options(netvm="") if is_offline else Options()


@contextmanager
def _published() -> Iterator[None]:
    """Failures of storage and machines as what clients of the Admin API are told of them."""
    try:
        yield
    except (HalError, StorageError) as error:
        raise QubesException(published_error(error)[1]) from error


def host_services(
    context: Context, policy: CurrentPolicy, qubes: SystemQubes, prompts: Prompts, sound: Sound
) -> HostServices:
    """Every service of the target ``@adminvm``."""

    async def may(request: Request) -> bool:
        """Whether that would be allowed, and go to the host."""
        snapshot = qubes.snapshot()
        decision = settle(evaluate(request, await policy.get(), snapshot), snapshot, assume_yes=False)
        return isinstance(decision, Allow) and decision.target_uuid is None and decision.objection is None

    return {
        **QubeCalls(Dispatcher(context, api.METHODS), may).services(),
        **PolicyCalls(policy.store).services(),
        **GuestReports(context).services(),
        **Notifications(context, prompts.show).services(),
        **sound.services(),
    }


def tell_policy(context: Context, policy: Policy) -> None:
    """Say what the policy is now, and loudly when it is none: until it is repaired every call is denied."""
    for problem in policy.problems:
        log.error("policy: %s", problem)
    if policy.problems:
        log.error("policy: with %d problems EVERY call is denied; see insula policy check", len(policy.problems))
    else:
        log.info("policy: %d rules of %d files", len(policy.rules), len(policy.files))
    first = str(policy.problems[0]) if policy.problems else ""
    context.publish("", "policy-changed", rules=len(policy.rules), problems=len(policy.problems), first_problem=first)


def install_default_policy(default: Path, folder: Path) -> None:
    """Give a new installation its rules. A folder that is there is the user's, whatever is in it."""
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(default, unfinished)
    unfinished.rename(folder)


def default_policy() -> Path:
    """Where the rules lie that a new installation gets: in the package, or beside it in a checkout."""
    package = Path(insula.__file__ or "").resolve().parent
    installed = package / "policy.d"
    return installed if installed.exists() else package.parents[1] / "policy.d"


@dataclass(frozen=True)
class Calls:
    """What is open while the daemon is."""

    broker: Broker
    may_paste: PasteJudge
    """For windows: whether text may be pasted (:class:`insula.gui.launcher.GuiLauncher`)."""
    prompts: Prompts
    """For windows: its ``tell`` is how the user is told in the desktop's corner."""


@asynccontextmanager
async def open_calls(context: Context, paths: Paths, parent: PreloadedParent) -> AsyncIterator[Calls]:
    """Everything that calls between qubes need, in order. The policy is read at once: its problems are told at once.

    ``parent``: of processes that carry sound.
    """
    install_default_policy(default_policy(), paths.policy)
    policy = CurrentPolicy(PolicyStore(paths.policy), partial(tell_policy, context))
    await policy.get()
    qubes = SystemQubes(context)
    records = CallLog(paths.calls_log, context.bus)
    desk = PromptProgram(paths)
    prompts = Prompts(paths.policy_agent_socket, desk)
    sound = Sound(context, partial(carry, parent), partial(desktops, paths.desktop_note), prompts.tell)
    broker = Broker(policy, qubes, host_services(context, policy, qubes, prompts, sound), prompts, records)
    try:
        yield Calls(broker, PasteJudge(policy.get, qubes.snapshot), prompts)
    finally:
        await broker.close()
        await desk.close()
        records.close()
