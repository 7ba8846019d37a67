"""``insula events console doctor down`` and ``start --plan``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from insula.admin.client import AdminClient
from insula.cli.commands import doctor, down, events
from insula.cli.commands.doctor import Verdict
from insula.daemon.paths import Paths
from insula.events.types import Event
from insula.hal.hostinfo import probe
from insula.lifecycle.standby import FEATURE
from insula.model.names import QubeName
from insula.testing.admin_daemon import admin_daemon
from insula.testing.cli_runner import Cli, Ran, run_cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


@pytest.fixture
def nobody(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "run")


# start --cdrom


def test_start_from_a_cd_names_the_image_wherever_the_command_is_run(cli: Cli, tmp_path: Path) -> None:
    image = tmp_path / "rescue.iso"
    assert cli.run("start", "work", "--cdrom", str(image)).code == 0
    assert cli.daemon.engine.cds == {QubeName("work"): image}
    cli.daemon.engine.cds.clear()
    assert cli.run("start", "work", "--cdrom", f"dom0:{image}").code == 0
    assert cli.daemon.engine.cds == {QubeName("work"): image}


def test_start_from_a_cd_is_for_one_qube_and_no_plan(cli: Cli) -> None:
    for words in (("work", "vault"), ("work", "--plan")):
        ran = cli.run("start", *words, "--cdrom", "x.iso")
        assert ran.code == 2
        assert "--cdrom is for one qube" in ran.err


# start --plan


def test_start_plan_prints_the_steps_and_starts_nothing(cli: Cli) -> None:
    plans = cli.run("start", "--plan", "work", "--json").json
    assert list(plans) == ["work"]
    assert plans["work"]
    lines = cli.run("start", "--plan", "work").lines
    assert lines[0] == "work:"
    assert lines[1] == f"  1. {plans['work'][0]}"
    assert cli.run("ls", "work", "--json").json[0]["state"] == "Halted"


# events


async def test_events_follow_prints_each_and_reconnects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events, "RECONNECT_S", 0.01)
    seen = ""

    async def shown(text: str) -> str:
        nonlocal seen
        async with asyncio.timeout(120):
            while text not in seen:
                seen += capsys.readouterr().out
                await asyncio.sleep(0.01)
        return seen

    async with admin_daemon(tmp_path) as daemon:
        following = asyncio.create_task(events.follow(AdminClient(daemon.socket), "dom0", as_json=False))
        await shown("- connection-established\n")
        daemon.bus.publish(Event("work", "domain-start", {"reason": "a\x1b[2Jb"}))
        assert "work domain-start reason=a\\x1b[2Jb\n" in await shown("domain-start")
    seen = ""
    async with admin_daemon(tmp_path):
        await shown("connection-established")
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def test_events_of_unknown_qube_is_refused(cli: Cli) -> None:
    assert cli.run("events", "wrok").err.endswith("hint: did you mean work?\n")


# console


def test_console_shows_control_characters_as_numbers(cli: Cli) -> None:
    folder = cli.paths.qube("work")
    folder.mkdir(parents=True)
    (folder / "console.log").write_bytes(b"boot\x1b]0;owned\x07\r\n\xff no end of line")
    assert cli.run("console", "work") == Ran(0, "boot\\x1b]0;owned\\x07\n\\xff no end of line\n", "")


def test_console_of_halted_qube_shows_the_kept_log(cli: Cli) -> None:
    (cli.paths.logs / "work.console.log").write_bytes(b"last words\n")
    assert cli.run("console", "work", "--follow").out == "last words\n"


def test_console_that_never_ends_its_line_is_shown_in_pieces(cli: Cli) -> None:
    (cli.paths.logs / "work.console.log").write_bytes(b"x" * 200_000)
    assert cli.run("console", "work").out.replace("\n", "") == "x" * 200_000


def test_console_without_log_or_qube_is_refused(cli: Cli) -> None:
    ran = cli.run("console", "work")
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "hint: insula start work")
    (cli.paths.logs / "secret.console.log").write_bytes(b"secret")
    for name in ("secret", "../logs/secret"):
        assert cli.run("console", name).out == ""


# doctor


def test_doctor_works_without_daemon_and_gives_a_verdict_on_everything(nobody: Paths) -> None:
    ran = run_cli(nobody, "doctor", "--json")
    findings = {item["check"]: item for item in ran.json["findings"]}
    assert {"virtualization", "IOMMU", "memory", "disk", "qemu-img", "mmdebstrap", "insulad", "templates"} <= set(
        findings
    )
    assert findings["insulad"]["found"] == "not running"
    assert ran.json["ok"] is (ran.code == 0)
    assert not nobody.runtime.exists()


def test_doctor_asks_the_daemon_that_runs(cli: Cli) -> None:
    findings = {item["check"]: item for item in cli.run("doctor", "--json").json["findings"]}
    assert findings["templates"]["found"] == "debian-12"
    assert "driver fake" in findings["insulad"]["found"]
    assert "WHAT FOLLOWS" in cli.run("doctor").out


def test_doctor_session_sandbox_that_cannot_be_made_fails_and_says_why() -> None:
    assert doctor.session_finding("").verdict is Verdict.OK
    finding = doctor.session_finding("unshare: Operation not permitted")
    assert finding.verdict is Verdict.FAIL
    assert finding.follows == "No qube can be started: unshare: Operation not permitted"


def test_doctor_missing_tool_fails_and_names_the_package(nobody: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_tool", lambda name: None if name == "mmdebstrap" else f"/usr/bin/{name}")
    ran = run_cli(nobody, "doctor", "--json")
    assert ran.code == 1
    [finding] = [item for item in ran.json["findings"] if item["check"] == "mmdebstrap"]
    assert finding["verdict"] == "fail"
    assert "apt-get install mmdebstrap" in finding["follows"]


def test_doctor_newuidmap_is_needed_by_ordinary_users_only() -> None:
    for is_root, verdict in ((True, Verdict.OK), (False, Verdict.FAIL)):
        [finding] = doctor.tool_findings({"newuidmap": None}, is_root=is_root)
        assert finding.verdict is verdict


def test_doctor_disk_and_templates_verdicts(tmp_path: Path) -> None:
    for free, verdict in ((10**8, Verdict.FAIL), (5 * 10**9, Verdict.WARN), (10**12, Verdict.OK)):
        [finding] = doctor.disk_findings(tmp_path, free)
        assert finding.verdict is verdict
    view = doctor.DaemonView("1", "fake", ())
    _, templates, _ = doctor.daemon_findings(view, Paths(tmp_path, tmp_path))
    assert (templates.verdict, "insula template build debian-12" in templates.follows) == (Verdict.WARN, True)


@pytest.mark.parametrize(("machines", "found"), [(0, "none"), (2, "2 with 140 MiB")])
def test_doctor_says_what_machines_in_waiting_take_and_how_to_have_none(machines: int, found: str) -> None:
    view = doctor.DaemonView("1", "fake", (), machines, machines * 70 << 10)
    finding = doctor.waiting_finding(view)
    assert (finding.verdict, finding.found) == (Verdict.OK, found)
    assert FEATURE in finding.follows


def test_doctor_says_whether_anybody_asks_the_user(nobody: Paths) -> None:
    def finding() -> dict[str, str]:
        [found] = [
            item for item in run_cli(nobody, "doctor", "--json").json["findings"] if item["check"] == "questions"
        ]
        assert isinstance(found, dict)
        return found

    assert finding()["verdict"] == "warn"
    assert "insula prompt" in finding()["follows"]
    with socket.socket(socket.AF_UNIX) as prompt:
        nobody.runtime.mkdir(parents=True, exist_ok=True)
        prompt.bind(str(nobody.policy_agent_socket))
        prompt.listen()
        assert finding()["verdict"] == "ok"


def test_doctor_host_problem_fails() -> None:
    host = probe()
    broken = SimpleNamespace(
        **{name: getattr(host, name) for name in ("accelerator", "cpu_count", "cpu_model", "qemu", "bwrap")},
        problems=("bubblewrap is not installed",),
        iommu_groups=3,
        daemon_is_root=False,
        memory_available_mib=100,
        memory_total_mib=1000,
    )
    verdicts = {finding.check: finding.verdict for finding in doctor.host_findings(broken)}  # type: ignore[arg-type]
    assert verdicts["sandbox"] is Verdict.FAIL
    assert verdicts["memory"] is Verdict.WARN
    assert verdicts["IOMMU"] is Verdict.OK


# down


def end_server_when_asked(cli: Cli) -> None:
    """Let ``insula.Shutdown`` do what the daemon does: the socket goes away."""

    async def shut_down() -> None:
        for name in list(cli.daemon.engine.states):
            with contextlib.suppress(Exception):
                await cli.daemon.engine.shutdown(name, force=True, wait=True)
        cli.paths.admin_socket.unlink(missing_ok=True)

    cli.daemon.control.shut_down = shut_down  # type: ignore[method-assign]


def test_down_when_nothing_runs_says_so_and_starts_nothing(nobody: Paths) -> None:
    assert run_cli(nobody, "down") == Ran(0, "", "nothing was running\n")
    assert run_cli(nobody, "down", "--json").json == {"was_running": False, "stopped": []}
    assert not nobody.runtime.exists()


def test_down_stops_qubes_then_the_daemon(cli: Cli) -> None:
    cli.run("start", "work")
    end_server_when_asked(cli)
    ran = cli.run("down", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {"was_running": True, "stopped": ["work"]}
    assert "insulad and every qube stopped in " in ran.err
    assert cli.run("down").err == "nothing was running\n"


def test_down_kills_what_does_not_stop_in_time(cli: Cli) -> None:
    cli.run("start", "work")
    gate = cli.in_daemon(lambda: cli.daemon.engine.hold("shutdown"))
    end_server_when_asked(cli)
    original = cli.daemon.engine.kill

    async def kill(name: str) -> None:
        await original(name)  # type: ignore[arg-type]
        gate.set()

    cli.daemon.engine.kill = kill  # type: ignore[method-assign, assignment]
    ran = cli.run("down", "--timeout", "0.2")
    assert ran.code == 0, ran.err
    assert "some qubes took longer than 0.2 s and are killed" in ran.err


def test_down_daemon_that_stays_is_an_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(down, "GONE_TIMEOUT_S", 0.1)
    ran = cli.run("down")
    assert ran.code == 1
    assert "insulad is still there" in ran.err
    assert f"hint: its log: {cli.paths.logs}" in ran.err
