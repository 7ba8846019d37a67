from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
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


FACTS = b"""
id; pwd; umask; env | sort; ls /proc/self/fd | wc -l
sed -n '/^\\(Uid\\|Gid\\|Groups\\|Sig[BC]\\|Cap\\|NoNewPrivs\\)/p' /proc/self/status
for of in NSsid NSpgid; do [ "$(sed -n "s/^$of:.//p" /proc/$$/status)" = $$ ] && echo leads; done
"""


USERS = [None, 0, 1234] if os.geteuid() == 0 else [None]
"""Whom the command is run as; None: as ourselves. Only root may be somebody else."""


def ours() -> list[object]:
    mask = os.umask(0)
    os.umask(mask)
    return [os.getresuid(), os.getresgid(), os.getgroups(), Path.cwd(), mask]


@pytest.mark.parametrize("user_id", USERS)
def test_spawned_process_is_what_a_forked_one_is_and_we_are_who_we_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_id: int | None
) -> None:
    tmp_path.chmod(0o755)
    plan = process.Plan("/bin/sh", ["sh", "-c", FACTS], {"PATH": "/usr/bin:/bin", "X": "1"}, str(tmp_path))
    plan.uid = user_id
    plan.gid, plan.groups = (1234, [1234, 27]) if user_id else (0, [0])
    before = ours()
    with monkeypatch.context() as only_fork:
        only_fork.setattr(process, "_can_spawn", lambda plan: False)
        forked = run(plan)
    with monkeypatch.context() as only_spawn:
        only_spawn.delattr(process, "_fork")
        spawned = run(plan)
    assert spawned == forked
    assert forked[0] == 0
    if user_id:
        assert b"uid=1234 gid=1234 groups=1234,27" in spawned[1]
        assert b"CapEff:\t0000000000000000" in spawned[1]
        assert b"Uid:\t1234\t1234\t1234\t1234" in spawned[1]
    assert spawned[1].endswith(b"leads\nleads\n")
    assert ours() == before


def test_user_of_a_service_never_has_our_user_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has it could send us signals."""
    plan = process.Plan("/bin/sh", ["sh", "-c", ":"], {}, "/")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for uid, is_spawned in ((0, True), (1, False), (999, False), (1000, True), (60000, True), (65534, False)):
        plan.uid = uid
        assert process._can_spawn(plan) == is_spawned


def test_rights_that_do_not_come_back_are_no_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = process.Plan("/nonexistent", ["nothing"], {}, "/")
    plan.uid = 1234
    calls = []

    def fails_afterwards(groups: object) -> None:
        calls.append(groups)
        if len(calls) > 1:
            raise PermissionError

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "setgroups", fails_afterwards)
    for name in ("setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *ids: None)
    with pytest.raises(process.RightsLost):
        run(plan)


def test_descriptor_we_were_started_with_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_has_own_descriptors", False)
    with Path(os.devnull).open("rb") as file:
        os.set_inheritable(file.fileno(), True)
        _, output = run(process.plan_command(own_account(), b"ls /proc/self/fd | wc -l", may_switch=False))
    assert output == b"4\n"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 2), (0, 0, 1), (2, 0, 2)])
def test_descriptors_in_each_others_places_are_told_apart(tmp_path: Path, order: tuple[int, int, int]) -> None:
    """Our own 0 to 2, given to the command in another order."""
    told = tmp_path / "told"
    code = (
        "import os, sys; from insula_agent import process\n"
        "for number in range(3): os.dup2(os.memfd_create(str(number)), number)\n"
        "show = '(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2; :) >$0; :'\n"
        "plan = process.Plan('/bin/sh', ['sh', '-c', show, sys.argv[1]], {'PATH': '/usr/bin:/bin'}, '/')\n"
        "os.waitpid(process.start(plan, *map(int, sys.argv[2:])), 0)\n"
    )
    subprocess.run([sys.executable, "-c", code, told, *map(str, order)], check=True, timeout=120)
    assert told.read_text().splitlines() == [f"/memfd:{number} (deleted)" for number in order]


def test_start_missing_program_ends_with_125_and_says_so() -> None:
    plan = process.plan_service(own_account(), "/nonexistent/program", None, {}, may_switch=False)
    code, output = run(plan)
    assert code == 125
    assert b"/nonexistent/program" in output


def test_start_word_with_a_null_ends_with_125_and_says_so() -> None:
    code, output = run(process.Plan("/bin/echo", ["echo", b"a\0b"], {}, "/"))
    assert code == 125
    assert b"null" in output


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
