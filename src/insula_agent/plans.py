"""What a command line of the host asks for, decided before anything is done (reference: qrexec, §5)."""

from __future__ import annotations

import os

from insula_agent import process
from insula_proto import services
from insula_proto.qrexec import EXIT_NOT_FOUND, EXIT_PROBLEM
from insula_proto.services import Executable, ServiceCall, Settings, SocketService, TcpService

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Plan = Union[process.Plan, "SocketPlan"]

NO_GUI = b"nogui:"
SESSION_SERVICE = "qubes.WaitForSession"
BOOTED_SERVICE = "qubes.WaitForRunningSystem"
RUNS_WHAT_IS_TYPED = frozenset(
    ("qubes.VMExec", "qubes.VMExecGUI", "qubes.VMRootExec", "qubes.VMShell", "qubes.VMRootShell")
)
"""Services whose input is a pipe. That of others is a socket, as published, which they may use for output too; but what
people type opens ``/dev/stdin``, which cannot be done with a socket."""


OWN_SCRIPTS = frozenset([f"/etc/qubes-rpc/{name}" for name in ("qubes.VMExec", "qubes.VMExecGUI", "qubes.VMRootExec")])
"""Services of ours that what people run goes through: one script, by three names."""
SHEBANG = b"#!/bin/sh\n"


class StartFailed(Exception):
    """The command cannot be started; ``code`` is what the caller gets as exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Configuration:
    """Where services are, where programs ask for those of other qubes, and whether commands change the user."""

    __slots__ = ("agent_socket", "config_path", "fork_server", "is_session", "may_switch", "service_path")

    def __init__(
        self, service_path: str, config_path: str, agent_socket: str, fork_server: str = "", *, may_switch: bool
    ) -> None:
        self.service_path = service_path
        self.config_path = config_path
        self.agent_socket = agent_socket
        self.fork_server = fork_server
        """Where processes inside users' sessions listen, ``%s`` being the user; empty: nowhere."""
        self.may_switch = may_switch
        self.is_session = False
        """We run inside a user's session: what we start gets its environment."""


class SocketPlan:
    """Be connected to something that listens; ``first`` is what it is told before anything else."""

    __slots__ = ("exit_on_client_eof", "exit_on_service_eof", "first", "target")

    def __init__(self, target: SocketService | TcpService, first: bytes, settings: Settings) -> None:
        self.target = target
        self.first = first
        self.exit_on_client_eof = settings.exit_on_client_eof
        self.exit_on_service_eof = settings.exit_on_service_eof


class Order:
    """A command line, read. ``call`` is None for a shell command."""

    __slots__ = ("call", "command", "has_gui", "settings", "user", "whole")

    def __init__(self, user: bytes, command: bytes, call: ServiceCall | None, settings: Settings) -> None:
        self.user = user if settings.force_user is None else settings.force_user.encode("utf-8", "surrogateescape")
        self.has_gui = not command.startswith(NO_GUI)
        self.whole = command
        self.command = command if self.has_gui else command[len(NO_GUI) :]
        self.call = call
        self.settings = settings

    @property
    def waits_for_session(self) -> bool:
        return self.has_gui and self.settings.wait_for_session

    @property
    def waits_for_system(self) -> bool:
        """Whether it is over only when the system has booted to its end. (The user's session does not need that.)"""
        return self.call is not None and self.call.name == BOOTED_SERVICE

    @property
    def belongs_in_session(self) -> bool:
        """Whether a process inside the user's session may run it, if there is one."""
        settings = self.settings
        return self.has_gui and not (
            settings.skip_descriptor or settings.exit_on_client_eof or settings.exit_on_service_eof
        )


def read(command_line: bytes, configuration: Configuration) -> Order:
    """Understand ``user:command`` and find the settings of the service it names. :raise StartFailed:"""
    user, colon, command = command_line.partition(b":")
    if not colon:
        raise StartFailed("a command line is user:command", EXIT_PROBLEM)
    try:
        call = services.parse_call(command)
        settings = Settings() if call is None else services.find_settings(call, configuration.config_path)
    except services.ServiceBroken as error:
        raise StartFailed(str(error), EXIT_PROBLEM) from error
    return Order(user, command, call, settings)


def plan(order: Order, configuration: Configuration) -> Plan:
    """Decide what an order executes or connects to. :raise StartFailed:"""
    call = order.call
    may_switch = configuration.may_switch
    try:
        if call is None:
            account = process.find_account(order.user, may_switch=may_switch)
            made = process.plan_command(account, order.command, may_switch=may_switch)
            return process.in_session(made) if configuration.is_session else made
        found = services.locate(call, configuration.service_path)
        if not isinstance(found, Executable):
            first = b"" if order.settings.skip_descriptor else call.descriptor
            return SocketPlan(found, first, order.settings)
        account = process.find_account(order.user, may_switch=may_switch)
        made = process.plan_service(
            account,
            found.path,
            call.argument,
            call.environment(os.getpid()),
            may_switch=may_switch,
            is_script=found.path in OWN_SCRIPTS and is_shell_script(found.path),
        )
    except services.ServiceNotFound as error:
        raise StartFailed(f"no service {error}", EXIT_NOT_FOUND) from error
    except (services.ServiceBroken, process.UserUnknown) as error:
        raise StartFailed(str(error), EXIT_PROBLEM) from error
    made.has_pipe = call.name in RUNS_WHAT_IS_TYPED
    made.log_tag = f"{call.full_name}-{call.source}"
    return process.in_session(made) if configuration.is_session else made


def is_shell_script(path: str) -> bool:
    """Whether the kernel would have ``/bin/sh`` read it: somebody may have put another program in place of ours."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, len(SHEBANG)) == SHEBANG
    except OSError:
        return False
    finally:
        os.close(fd)


def plan_session_wait(order: Order, configuration: Configuration) -> process.Plan | None:
    """The program that ends when the user's session is there; None: this qube has none.

    It runs as ourselves and is told the user on its standard input.
    """
    call = ServiceCall(SESSION_SERVICE, "" if order.call is None else order.call.source, "", "")
    try:
        path = services.find_service(call, configuration.service_path)
    except (services.ServiceNotFound, services.ServiceBroken):
        return None
    return process.plan_own(path, {"QREXEC_REMOTE_DOMAIN": call.source})
