"""``insula calls``: the log of calls, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.events.bus import EventBus
from insula.rpc.call_log import CallLog, CallRecord
from insula.testing.cli_runner import Cli, served_cli


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
