"""What command lines mean, before anything is done."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest

from insula_agent import plans, process
from insula_agent.plans import Configuration, SocketPlan, StartFailed
from insula_proto.services import SocketService, TcpService

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    for name in ("rpc", "config"):
        (tmp_path / name).mkdir()
    return Configuration(f"{tmp_path}/rpc", f"{tmp_path}/config", "", may_switch=False)


def place(configuration: Configuration, name: str, settings: str = "") -> None:
    path = Path(configuration.service_path) / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    if settings:
        (Path(configuration.config_path) / name).write_text(settings)


def made(configuration: Configuration, command: str) -> plans.Plan:
    return plans.plan(plans.read(f"{USER}:{command}".encode(), configuration), configuration)


def test_shell_command_has_a_socket_and_no_log(configuration: Configuration) -> None:
    plan = made(configuration, "echo hello")
    assert isinstance(plan, process.Plan)
    assert plan.arguments == ["sh", "-c", b"echo hello"]
    assert (plan.has_pipe, plan.log_tag) == (False, "")
    assert plan.environment["QREXEC_AGENT_PID"] == str(os.getpid())


def test_prefix_without_gui_is_no_part_of_the_command(configuration: Configuration) -> None:
    order = plans.read(f"{USER}:nogui:echo hello".encode(), configuration)
    assert (order.command, order.has_gui, order.belongs_in_session) == (b"echo hello", False, False)
    assert order.whole == b"nogui:echo hello"


def test_service_is_logged_under_name_and_source(configuration: Configuration) -> None:
    place(configuration, "a.B")
    plan = made(configuration, "QUBESRPC a.B+c work name vault")
    assert isinstance(plan, process.Plan)
    assert plan.arguments == [f"{configuration.service_path}/a.B", "c"]
    assert (plan.has_pipe, plan.log_tag) == (False, "a.B+c-work")


def test_service_that_runs_what_is_typed_has_a_pipe(configuration: Configuration) -> None:
    place(configuration, "qubes.VMExec")
    plan = made(configuration, "QUBESRPC qubes.VMExec+true dom0")
    assert isinstance(plan, process.Plan)
    assert plan.has_pipe


@pytest.mark.parametrize(
    ("content", "is_script"), [("#!/bin/sh\nexec true\n", True), ("#!/bin/bash\n", False), ("", False)]
)
def test_shell_script_of_ours_is_read_by_the_login_shell_itself(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, content: str, is_script: bool
) -> None:
    place(configuration, "a.B")
    path = f"{configuration.service_path}/a.B"
    Path(path).write_text(content)
    own = Configuration(configuration.service_path, configuration.config_path, "", may_switch=True)
    monkeypatch.setattr(plans, "OWN_SCRIPTS", {path})
    plan = made(own, "QUBESRPC a.B+c work")
    assert isinstance(plan, process.Plan)
    assert (plan.arguments[3] == '. "$0"') == is_script
    assert plan.arguments[4:] == [path, "c"]
    monkeypatch.setattr(plans, "OWN_SCRIPTS", set())
    other = made(own, "QUBESRPC a.B+c work")
    assert isinstance(other, process.Plan)
    assert other.arguments[3] != '. "$0"'


def test_service_that_waits_for_the_system_is_known(configuration: Configuration) -> None:
    place(configuration, "a.B", "wait-for-session = true\n")
    for name in ("a.B", "qubes.WaitForSession", "qubes.WaitForRunningSystem", "qubes.VMExec"):
        order = plans.read(f"{USER}:QUBESRPC {name} dom0".encode(), configuration)
        assert order.waits_for_system == (name == "qubes.WaitForRunningSystem")


def test_script_that_cannot_be_read_is_left_to_the_shell(tmp_path: Path) -> None:
    assert not plans.is_shell_script(str(tmp_path / "none"))
    assert not plans.is_shell_script(str(tmp_path))


def test_socket_and_tcp_service_are_told_who_calls_unless_set_otherwise(configuration: Configuration) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{configuration.service_path}/a.S")
    (Path(configuration.service_path) / "a.T").symlink_to("/dev/tcp/127.0.0.1/80")
    plan = made(configuration, "QUBESRPC a.S+c work")
    assert isinstance(plan, SocketPlan)
    assert plan.target == SocketService(f"{configuration.service_path}/a.S")
    assert plan.first == b"a.S+c work\0"
    (Path(configuration.config_path) / "a.T").write_text("skip-service-descriptor = true\nexit-on-client-eof = true\n")
    plan = made(configuration, "QUBESRPC a.T work")
    assert isinstance(plan, SocketPlan)
    assert (plan.target, plan.first) == (TcpService("127.0.0.1", 80), b"")
    assert (plan.exit_on_client_eof, plan.exit_on_service_eof) == (True, False)


def test_setting_of_user_counts_and_settings_of_sockets_stay_out_of_sessions(configuration: Configuration) -> None:
    place(configuration, "a.B", "force-user = 'somebody'\nwait-for-session = true\n")
    order = plans.read(f"{USER}:QUBESRPC a.B work".encode(), configuration)
    assert (order.user, order.waits_for_session, order.belongs_in_session) == (b"somebody", True, True)
    place(configuration, "a.C", "exit-on-service-eof = true\n")
    assert not plans.read(f"{USER}:QUBESRPC a.C work".encode(), configuration).belongs_in_session


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("QUBESRPC a.Absent work", 127),
        ("QUBESRPC a.B", 125),
        ("QUBESRPC a.B work name", 125),
        ("QUBESRPC ../a.B work", 125),
        ("QUBESRPC a.Bad work", 125),
    ],
)
def test_what_cannot_be_started_has_its_code(configuration: Configuration, command: str, code: int) -> None:
    """MC-16."""
    place(configuration, "a.B")
    place(configuration, "a.Bad", "wait-for-session = 2\n")
    with pytest.raises(StartFailed) as caught:
        made(configuration, command)
    assert caught.value.code == code


def test_session_wait_runs_as_ourselves_and_knows_who_calls(configuration: Configuration) -> None:
    order = plans.read(f"{USER}:QUBESRPC a.B work".encode(), configuration)
    assert plans.plan_session_wait(order, configuration) is None
    place(configuration, plans.SESSION_SERVICE)
    plan = plans.plan_session_wait(order, configuration)
    assert plan is not None
    assert (plan.uid, plan.environment["QREXEC_REMOTE_DOMAIN"]) == (None, "work")


def test_inside_a_session_its_environment_is_passed_on(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setenv("QREXEC_REMOTE_DOMAIN", "of-another-call")
    place(configuration, "a.B")
    configuration.is_session = True
    plan = made(configuration, "QUBESRPC a.B work")
    assert isinstance(plan, process.Plan)
    assert (plan.environment["DISPLAY"], plan.environment["QREXEC_REMOTE_DOMAIN"]) == (":7", "work")
