from __future__ import annotations

import os
import pwd
import signal
from pathlib import Path

import pytest

from insula_agent import process

ACCOUNT = pwd.struct_passwd(("user", "x", os.geteuid(), os.getegid(), "", "/home/user", "/bin/bash"))


def own_account() -> pwd.struct_passwd:
    return pwd.getpwuid(os.geteuid())


def run(plan: process.Plan) -> tuple[int, bytes]:
    """Execute a plan with its output in a pipe."""
    with Path(os.devnull).open("rb+", buffering=0) as null:
        reader, writer = os.pipe()
        pid = process.start(plan, null.fileno(), writer, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as output:
            text = output.read()
        return process.exit_code(os.waitpid(pid, 0)[1]), text


def test_plan_command_as_root_uses_login_shell_of_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [gid, 27])
    plan = process.plan_command(ACCOUNT, b"ls -a", may_switch=True)
    assert plan.program == "/bin/bash"
    assert plan.arguments == ["-bash", "-c", b"ls -a"]
    assert plan.uid == ACCOUNT.pw_uid
    assert plan.groups == [ACCOUNT.pw_gid, 27]
    assert plan.home == "/home/user"
    assert {name: plan.environment[name] for name in ("HOME", "SHELL", "USER", "LOGNAME")} == {
        "HOME": "/home/user",
        "SHELL": "/bin/bash",
        "USER": "user",
        "LOGNAME": "user",
    }


def test_plan_command_own_user_uses_plain_sh_and_switches_nothing() -> None:
    plan = process.plan_command(ACCOUNT, b"ls", may_switch=False)
    assert (plan.program, plan.arguments, plan.uid) == ("/bin/sh", ["sh", "-c", b"ls"], None)


def test_plan_service_as_root_goes_through_login_sh_unexpanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-17: name and argument are data of a constant shell program."""
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [gid])
    plan = process.plan_service(ACCOUNT, "/etc/qubes-rpc/a.B", "--help", {"X": "1"}, may_switch=True)
    assert plan.program == "/bin/sh"
    assert plan.arguments[:3] == ["sh", "-l", "-c"]
    assert plan.arguments[4:] == ["/etc/qubes-rpc/a.B", "--help"]
    assert plan.environment["X"] == "1"


@pytest.mark.parametrize("content", ["\0", "#!/nowhere/interpreter\n"])
def test_service_that_cannot_be_executed_is_125(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.B"
    path.write_text(content)
    path.chmod(0o755)
    # Only root can become somebody, if only itself.
    for may_switch in {False, os.geteuid() == 0}:
        plan = process.plan_service(own_account(), str(path), None, {}, may_switch=may_switch)
        assert run(plan)[0] == 125


def test_environment_holds_nothing_of_the_agents_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/secret")
    monkeypatch.setenv("QREXEC_SOMETHING", "old")
    environment = process.plan_command(ACCOUNT, b"env", may_switch=False).environment
    assert not {"NOTIFY_SOCKET", "QREXEC_SOMETHING"} & set(environment)


@pytest.mark.parametrize("user", [b"no-such-user-here", b"\xff", b"", b"root\n"])
def test_find_account_unknown_refused(user: bytes) -> None:
    with pytest.raises(process.UserUnknown):
        process.find_account(user, may_switch=True)


def test_find_account_other_user_without_root_refused() -> None:
    other = next(account for account in pwd.getpwall() if account.pw_uid != os.geteuid())
    with pytest.raises(process.UserUnknown):
        process.find_account(other.pw_name.encode(), may_switch=False)


def test_start_child_has_default_signals_own_session_and_only_three_descriptors() -> None:
    script = b"grep -E '^(SigIgn|NSsid)' /proc/self/status; ls /proc/self/fd | wc -l"
    code, output = run(process.plan_command(own_account(), script, may_switch=False))
    *status, descriptors = output.decode().splitlines()
    facts = dict(line.split(":\t") for line in status)
    assert code == 0
    ordinary = (1 << 31) - 1  # signals 1 to 31; the C library keeps 32 and 33 to itself
    assert int(facts["SigIgn"], 16) & ordinary == 0
    assert int(facts["NSsid"]) != os.getsid(0)
    assert descriptors == "4"  # 0, 1, 2 and the folder ls reads


def test_start_missing_program_ends_with_125_and_says_so() -> None:
    plan = process.plan_service(own_account(), "/nonexistent/program", None, {}, may_switch=False)
    code, output = run(plan)
    assert code == 125
    assert b"/nonexistent/program" in output


def test_exit_code_of_signal_is_128_and_number() -> None:
    code, _ = run(process.plan_command(own_account(), b"kill -TERM $$", may_switch=False))
    assert code == 128 + signal.SIGTERM


def test_signal_group_gone_is_no_error() -> None:
    code, output = run(process.plan_command(own_account(), b"echo $$", may_switch=False))
    assert code == 0
    process.signal_group(int(output), process.SIGHUP)


def test_signal_group_reaches_a_child_that_does_not_lead_its_group_yet() -> None:
    """Between fork and setsid; an agent that was told to end waited for such a command as long as it ran."""
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    process.signal_group(pid, process.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
