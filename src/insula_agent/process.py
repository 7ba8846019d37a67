"""Starting a command as a user: plan what to execute (pure), then fork.

``subprocess`` is not used: its import costs more than everything else here, and it cannot start a session and switch
the user in the way a login does. No PAM session is opened (that needs more than the standard library).
"""

from __future__ import annotations

# The public module ``signal`` builds enums on import, which under software emulation is felt at every boot.
import _signal  # type: ignore[import-not-found]
import os
import pwd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SIGHUP, SIGKILL = 1, 9
_RESET_SIGNALS = (1, 2, 3, 10, 12, 13, 14, 15, 17, 18, 20, 21, 22, 24, 25)
"""HUP INT QUIT USR1 USR2 PIPE ALRM TERM CHLD CONT TSTP TTIN TTOU XCPU XFSZ (signal(7))."""

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INHERITED = ("LANG", "LC_ALL", "TZ", "QREXEC_SERVICE_PATH")
_EXEC_ITS_ARGUMENTS = 'trap \'exit 125\' EXIT; exec "$0" "$@"'
"""A shell program that becomes the service; name and argument reach it unexpanded (MC-17). One that cannot be executed
is a problem (125), not refused (126) or absent (127), which a shell would end with."""
_READ_ITS_SCRIPT = '. "$0"'
"""A shell program that goes on as the service, which is a script for the same shell: a process's start less."""
EXEC_FAILED = 125
_MAX_INHERITED = 1024


class UserUnknown(Exception):
    """No such user, or one this agent may not become: exit code 125."""


class Plan:
    """What to execute: program, argument vector, environment, and as whom (``uid`` None: as ourselves).

    ``has_pipe``: standard input is a pipe, else a socket. ``log_tag``: error output goes to the system's log too.
    """

    __slots__ = ("arguments", "environment", "gid", "groups", "has_pipe", "home", "log_tag", "program", "uid")

    def __init__(self, program: str, arguments: Sequence[bytes | str], environment: dict[str, str], home: str) -> None:
        self.program = program
        self.arguments = arguments
        self.environment = environment
        self.home = home
        self.uid: int | None = None
        self.gid = 0
        self.groups: list[int] = []
        self.has_pipe = False
        self.log_tag = ""


def _environment(account: pwd.struct_passwd, shell: str, extra: dict[str, str]) -> dict[str, str]:
    """As a login makes it; of ours only what says how to speak, and where services are (qrexec, §5)."""
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment.update(
        PATH=_DEFAULT_PATH, HOME=account.pw_dir, SHELL=shell, USER=account.pw_name, LOGNAME=account.pw_name
    )
    environment.update(extra)
    return environment


def find_account(user: bytes, *, may_switch: bool) -> pwd.struct_passwd:
    """Return the account of that name; only our own unless users may be switched. :raise UserUnknown:"""
    try:
        account = pwd.getpwnam(user.decode("utf-8"))
    except (KeyError, ValueError) as error:
        raise UserUnknown(f"no user {user!r}") from error
    if not may_switch and account.pw_uid != os.geteuid():
        raise UserUnknown(f"cannot become {account.pw_name}: not started as root")
    return account


def _as_user(plan: Plan, account: pwd.struct_passwd) -> Plan:
    plan.uid = account.pw_uid
    plan.gid = account.pw_gid
    plan.groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return plan


def plan_command(account: pwd.struct_passwd, command: bytes, *, may_switch: bool) -> Plan:
    """A shell command: in the user's login shell, or (users not switched) by ``/bin/sh``."""
    variables = {"QREXEC_AGENT_PID": str(os.getpid())}
    if not may_switch:
        return Plan("/bin/sh", ["sh", "-c", command], _environment(account, "/bin/sh", variables), account.pw_dir)
    shell = account.pw_shell or "/bin/sh"
    arguments: list[bytes | str] = ["-" + shell.rpartition("/")[2], "-c", command]
    return _as_user(Plan(shell, arguments, _environment(account, shell, variables), account.pw_dir), account)


def plan_service(
    account: pwd.struct_passwd,
    path: str,
    argument: str | None,
    variables: dict[str, str],
    *,
    may_switch: bool,
    is_script: bool = False,
) -> Plan:
    """A service: through a login ``/bin/sh`` that becomes it, or (users not switched) directly.

    ``is_script``: it is written for ``/bin/sh``, and does not mind what a profile has left in that.
    """
    vector = [path, argument] if argument else [path]
    environment = _environment(account, account.pw_shell or "/bin/sh", variables)
    if not may_switch:
        return Plan(path, vector, environment, account.pw_dir)
    arguments = ["sh", "-l", "-c", _READ_ITS_SCRIPT if is_script else _EXEC_ITS_ARGUMENTS, *vector]
    return _as_user(Plan("/bin/sh", arguments, environment, account.pw_dir), account)


def in_session(plan: Plan) -> Plan:
    """The same with our own environment, which is that of the session: display, bus, and what the user set."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QREXEC")}
    plan.environment = {**plan.environment, **inherited}
    return plan


def plan_own(path: str, variables: dict[str, str]) -> Plan:
    """A program of the system that runs as ourselves."""
    account = pwd.getpwuid(os.geteuid())
    return Plan(path, [path], _environment(account, "/bin/sh", variables), "/")


def start(plan: Plan, stdin: int, stdout: int, stderr: int) -> int:
    """Fork and execute; the process leads a session and a group of its own. Return its pid.

    It ends with :data:`EXEC_FAILED` if it could not be executed.

    :raise OSError: no process could be made.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        _become(plan, stdin, stdout, stderr)
        os.execve(plan.program, plan.arguments, plan.environment)  # type: ignore[arg-type]  # noqa: S606 - mixed str, bytes
    except BaseException as error:  # noqa: BLE001, RUF100 - nothing of the agent may run on in the child
        os.write(2, f"insula-agent: {plan.program}: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(EXEC_FAILED)


def _become(plan: Plan, stdin: int, stdout: int, stderr: int) -> None:
    os.setsid()
    # Copies above 2 first: one of the three could be in another's place.
    copies = [os.dup(fd) for fd in (stdin, stdout, stderr)]
    for target, copy in enumerate(copies):
        os.dup2(copy, target)
    # Our own descriptors close themselves on exec; these may be some the agent was started with.
    os.closerange(3, _MAX_INHERITED)
    # What the agent, or whoever started it, ignores must not be ignored by the command: it would miss its hang-up.
    for number in _RESET_SIGNALS:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    if plan.uid is not None:
        os.setgroups(plan.groups)
        os.setgid(plan.gid)
        os.setuid(plan.uid)
    os.umask(0o022)
    try:
        os.chdir(plan.home)
    except OSError:
        os.chdir("/")


def exit_code(status: int) -> int:
    """The code of a wait status: 128 + N for a process killed by signal N."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _signal_one(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def signal_group(pid: int, number: int) -> None:
    """Signal a process we have not reaped yet and everything in its group."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        # So young that it does not lead its group yet; not reaped, so the number is still its own.
        _signal_one(pid, number)
    except PermissionError:
        # Every process left in the group changed its user; root is never told this.
        return
