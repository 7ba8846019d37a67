"""Starting a command as a user: plan what to execute (pure), then have it made (posix_spawn, else fork).

``subprocess`` is not used: its import costs more than everything else here, and it cannot start a session and switch
the user in the way a login does. No PAM session is opened (that needs more than the standard library).

A fork copies what this process has mapped, and then each page that either of the two writes: a fifth of a short command
in a qube. A process that is spawned shares all with us until it executes, while we stand still, and is what we are
then: so we are its user for that moment (:func:`_spawn_as`).
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
_OPEN_FILES = "/proc/self/fd"
_PEOPLE = range(1000, 60001)
"""User ids; others are of services. Whoever has our real user id may send us signals meanwhile: people may be root in a
qube anyway, services may not."""
_ROOT = 0


_has_own_descriptors = False
"""Whether those this process was started with close themselves on exec, as our own do."""


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


class RightsLost(Exception):
    """We are not who we were before a process was made, and must end."""


def start(plan: Plan, stdin: int, stdout: int, stderr: int) -> int:
    """Have it executed; the process leads a session and a group of its own. Return its pid.

    It ends with :data:`EXEC_FAILED` if it could not be executed.

    :raise OSError: no process could be made.
    """
    pid = None
    if _can_spawn(plan) and 0 not in (stdout, stderr) and stderr != 1:
        pid = _spawn_as(plan, (stdin, stdout, stderr))
    # What could not be spawned says itself what was wrong.
    return _fork(plan, stdin, stdout, stderr) if pid is None else pid


def _can_spawn(plan: Plan) -> bool:
    return plan.uid is None or (os.geteuid() == _ROOT and (plan.uid == _ROOT or plan.uid in _PEOPLE))


def _spawn_as(plan: Plan, descriptors: Sequence[int]) -> int | None:
    """Spawn it with its user's rights, folder and file mode, which are ours meanwhile; None: that cannot be done.

    :raise RightsLost:
    """
    _own_descriptors()
    try:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    mask = os.umask(0o022)
    try:
        return _spawn(plan, descriptors) if plan.uid is None else _switch_and_spawn(plan, plan.uid, descriptors)
    except (OSError, ValueError):
        return None
    finally:
        os.umask(mask)
        try:
            os.fchdir(here)
        except OSError:
            # A folder that may be left and not entered. All that we open has a whole path.
            os.chdir("/")
        os.close(here)


def _switch_and_spawn(plan: Plan, uid: int, descriptors: Sequence[int]) -> int:
    """:raise OSError: :raise RightsLost:"""
    groups, gids, uids = os.getgroups(), os.getresgid(), os.getresuid()
    os.setgroups(plan.groups)
    try:
        # The saved ids, by which we come back, are replaced when it is executed.
        os.setresgid(plan.gid, plan.gid, _ROOT)
        os.setresuid(uid, uid, _ROOT)
        return _spawn(plan, descriptors)
    finally:
        try:
            os.setresuid(*uids)
            os.setresgid(*gids)
            os.setgroups(groups)
        except OSError as error:
            raise RightsLost(f"not root any more: {error}") from error


def _spawn(plan: Plan, descriptors: Sequence[int]) -> int:
    """:raise OSError:"""
    _enter(plan.home)
    return os.posix_spawn(
        plan.program,
        plan.arguments,  # type: ignore[arg-type] # mixed str, bytes
        plan.environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(descriptors)],
        setsid=True,
        setsigmask=(),
        setsigdef=_RESET_SIGNALS,
    )


def _own_descriptors() -> None:
    """Let those we were started with close themselves on exec."""
    global _has_own_descriptors  # noqa: PLW0603 - of this process, as the descriptors are
    if not _has_own_descriptors:
        for name in os.listdir(_OPEN_FILES):
            try:
                if int(name) > 2:
                    os.set_inheritable(int(name), False)
            except OSError:
                # The one by which the folder was read.
                continue
        _has_own_descriptors = True


def _enter(home: str) -> None:
    try:
        os.chdir(home)
    except OSError:
        os.chdir("/")


def _fork(plan: Plan, stdin: int, stdout: int, stderr: int) -> int:
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
    _enter(plan.home)


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
