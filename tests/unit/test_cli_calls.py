"""``insula calls``: the log of calls, for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.cli.commands import doctor
from insula.events.bus import EventBus
from insula.rpc.call_log import CallLog, CallRecord
from insula.testing.cli_runner import PROGRAM, Cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        served.paths.logs.mkdir(parents=True, exist_ok=True)
        yield served


@pytest.fixture
def log(cli: Cli) -> Iterator[CallLog]:
    made = CallLog(cli.paths.calls_log, EventBus())
    yield made
    made.close()


def write(log: CallLog) -> None:
    log.ended(
        CallRecord(
            1,
            "work",
            "qubes.Filecopy",
            "+",
            "",
            decision="allowed",
            rule="90-default.policy:5",
            asked=True,
            server="vault",
            ended_after_s=1.25,
            from_caller=2048,
        )
    )
    log.ended(CallRecord(2, "untrusted", "qubes.VMShell", "+x", "work", decision="denied", reason="a rule denies it"))
    log.ended(CallRecord(3, "evil", "a\x1b[31mB", "+", "vault", decision="refused", reason="busy"))


def test_calls_are_shown_with_who_what_whom_outcome_and_rule(cli: Cli, log: CallLog) -> None:
    write(log)
    lines = cli.run("calls").out.splitlines()
    assert lines[0].endswith(
        "work → @default = vault  qubes.Filecopy  allowed by the user, 90-default.policy:5, 1.2 s, 2.0 KiB"
    )
    assert lines[1].endswith("untrusted → work  qubes.VMShell+x  denied, a rule denies it")
    assert "\x1b" not in lines[2]


def test_calls_are_picked_by_qube_service_and_outcome(cli: Cli, log: CallLog) -> None:
    write(log)
    for arguments, expected in (
        (("work",), [1, 2]),
        (("vault",), [1, 3]),
        (("--service", "qubes.VMShell"), [2]),
        (("--refused",), [2, 3]),
        (("--last", "1"), [3]),
        (("nobody",), []),
    ):
        found = cli.run("calls", "--json", *arguments).out.splitlines()
        assert [json.loads(line)["number"] for line in found] == expected, arguments


def test_no_call_yet_is_no_error(cli: Cli) -> None:
    shown = cli.run("calls")
    assert (shown.code, shown.out) == (0, "")


def test_follow_shows_calls_as_they_end(cli: Cli, log: CallLog) -> None:
    write(log)
    environment = {
        **os.environ,
        "INSULA_DATA_DIR": str(cli.paths.data),
        "INSULA_RUNTIME_DIR": str(cli.paths.runtime),
    }
    command = [sys.executable, "-c", PROGRAM, "calls", "--follow", "--json", "--last", "1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            assert json.loads(following.stdout.readline())["number"] == 3
            log.ended(CallRecord(4, "work", "a.B", "+", "vault", decision="allowed"))
            assert json.loads(following.stdout.readline())["number"] == 4
        finally:
            following.kill()


def test_doctor_says_where_qubes_are_heard() -> None:
    assert doctor.sound_finding("/run/user/7/pulse/native").verdict is doctor.Verdict.OK
    assert doctor.sound_finding(None).verdict is doctor.Verdict.WARN


def test_doctor_says_loudly_that_a_policy_is_none(cli: Cli) -> None:
    """MC-25."""
    cli.paths.policy.mkdir()
    (cli.paths.policy / "50-a.policy").write_text("a.B * work vault allow\n")
    assert doctor.policy_finding(cli.paths).verdict is doctor.Verdict.OK
    (cli.paths.policy / "60-b.policy").write_text("nonsense\n")
    finding = doctor.policy_finding(cli.paths)
    assert finding.verdict is doctor.Verdict.FAIL
    assert "60-b.policy:1" in finding.found
    assert "EVERY call" in finding.follows
