"""``insula ls create start stop kill pause unpause remove clone`` against a served Admin API."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from insula.cli.commands import ls
from insula.cli.step import SHOW_AFTER_S
from insula.model.errors import QubesException, QubesMemoryError, QubesVMShutdownTimeoutError
from insula.model.names import QubeName
from insula.testing.cli_runner import Cli, served_cli


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


def names(cli: Cli) -> list[str]:
    return [row["name"] for row in cli.run("ls", "--json").json]


def state(cli: Cli, name: str) -> str:
    [row] = cli.run("ls", name, "--json").json
    return str(row["state"])


# ls


def test_ls_prints_one_line_a_qube_with_dom0_first(cli: Cli) -> None:
    ran = cli.run("ls")
    assert ran.code == 0
    assert ran.err == ""
    assert ran.lines[0].split() == ["NAME", "CLASS", "STATE", "LABEL", "TEMPLATE", "NETVM", "MEMORY", "IP"]
    assert [line.split()[:4] for line in ran.lines[1:]] == [
        ["dom0", "AdminVM", "Running", "black"],
        ["debian-12", "TemplateVM", "Halted", "black"],
        ["work", "AppVM", "Halted", "blue"],
    ]


def test_ls_json_has_stable_keys_and_real_memory_of_running_qubes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ls, "MEMORY_TIMEOUT_S", 120.0)
    assert cli.run("start", "work").code == 0
    rows = {row["name"]: row for row in cli.run("ls", "--json").json}
    assert list(rows["work"]) == [
        "name",
        "class",
        "state",
        "label",
        "template",
        "netvm",
        "memory_kib",
        "ip",
        "uuid",
        "has_updates",
    ]
    assert rows["work"]["state"] == "Running"
    assert rows["work"]["template"] == "debian-12"
    assert rows["work"]["netvm"] is None
    assert rows["work"]["memory_kib"] == 65536
    assert rows["debian-12"]["memory_kib"] is None


def test_ls_shows_who_has_updates_where_somebody_has(cli: Cli) -> None:
    assert cli.run("features", "debian-12", "updates-available", "1").code == 0
    ran = cli.run("ls")
    assert ran.lines[0].split()[-1] == "UPDATES"
    assert [line.split()[-1] for line in ran.lines[1:]] == ["-", "available", "-"]
    assert [row["has_updates"] for row in cli.run("ls", "--json").json] == [False, True, False]
    assert cli.run("features", "debian-12", "updates-available", "").code == 0
    assert cli.run("ls").lines[0].split()[-1] == "IP"


def test_ls_running_leaves_out_what_is_halted(cli: Cli) -> None:
    assert [row["name"] for row in cli.run("ls", "--running", "--json").json] == ["dom0"]
    assert [row["name"] for row in cli.run("ls", "--state", "halted", "--json").json] == ["debian-12", "work"]


def test_ls_unknown_qube_exits_1_and_guesses(cli: Cli) -> None:
    ran = cli.run("ls", "wrok")
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err == "insula: error: No such qube: 'wrok'\nhint: did you mean work?\n"


def test_ls_on_a_terminal_has_label_and_state_colors(cli: Cli) -> None:
    out = cli.run("ls", terminal=True, COLORTERM="truecolor", NO_COLOR="").out
    assert "\x1b[38;2;52;101;164m● \x1b[0mblue" in out
    assert "\x1b[32mRunning" in out


def test_ls_with_no_color_has_no_colors(cli: Cli) -> None:
    out = cli.run("ls", terminal=True, NO_COLOR="1").out
    assert "blue" in out
    assert "\x1b[38" not in out
    assert "\x1b[32" not in out


# create


def test_create_makes_the_qube_with_its_properties(cli: Cli) -> None:
    ran = cli.run("create", "bank", "--template", "debian-12", "--label", "green", "--prop", "memory=512", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {"name": "bank", "class": "AppVM", "label": "green"}
    assert cli.run("prefs", "bank", "memory", "--json").json["value"] == 512


def test_create_with_refused_property_leaves_nothing_and_says_so(cli: Cli) -> None:
    ran = cli.run("create", "bank", "--label", "green", "--prop", "vcpus=2", "--prop", "memory=lots")
    assert ran.code == 1
    assert "bank was removed again" in ran.err
    assert "insula: error: property memory: " in ran.err
    assert names(cli) == ["dom0", "debian-12", "work"]


def test_create_with_misspelt_property_guesses_and_leaves_nothing(cli: Cli) -> None:
    ran = cli.run("create", "bank", "--label", "green", "--prop", "memroy=512")
    assert ran.code == 1
    assert ran.err.endswith("hint: did you mean memory?\n")
    assert names(cli) == ["dom0", "debian-12", "work"]


def test_create_existing_name_is_refused_and_the_old_qube_stays(cli: Cli) -> None:
    ran = cli.run("create", "work", "--label", "red")
    assert ran.code == 1
    assert "already" in ran.err
    assert "removed" not in ran.err
    assert "work" in names(cli)


def test_create_without_label_is_wrong_usage(cli: Cli) -> None:
    ran = cli.run("create", "bank")
    assert ran.code == 2
    assert ran.err.startswith("insula: error: give it a colour")
    assert ran.err.endswith("hint: insula label lists them\n")


def in_json(cli: Cli, *arguments: str) -> Any:
    ran = cli.run(*arguments, "--json")
    assert ran.code == 0, ran.err
    return ran.json


def test_create_vpn_gives_network_and_reaches_the_other_end_alone(cli: Cli) -> None:
    ran = cli.run("create", "sys-vpn", "--role", "vpn", "--endpoint", "udp:203.0.113.5:51820")
    assert ran.code == 0, ran.err
    [row] = in_json(cli, "ls", "sys-vpn")
    assert row["label"] == "green"
    assert cli.run("prefs", "sys-vpn", "provides_network").out.strip() == "True"
    assert cli.run("features", "sys-vpn", "service.vpn-gateway").out.strip() == "1"
    [rule] = in_json(cli, "firewall", "sys-vpn")
    assert rule["rule"] == "action=accept proto=udp dst4=203.0.113.5/32 dstports=51820-51820 comment=tunnel"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--role", "vpm"), "did you mean vpn"),
        (("--role", "vpn", "--endpoint", "udp:vpn.example.org:1"), "an address"),
        (("--role", "vpn", "--endpoint", "udp:203.0.113.5"), "--endpoint"),
        (("--role", "vpn", "--endpoint", "icmp:203.0.113.5:1"), "--endpoint"),
        (("--role", "tor-gateway", "--endpoint", "udp:203.0.113.5:1"), "--role vpn"),
        (("--endpoint", "udp:203.0.113.5:1", "--label", "red"), "--role vpn"),
        (
            (
                "--role",
                "tor-workstation",
            ),
            "--prop netvm=sys-whonix",
        ),
    ],
)
def test_create_role_that_cannot_be_is_wrong_usage_and_nothing_is_made(
    cli: Cli, arguments: tuple[str, ...], said: str
) -> None:
    ran = cli.run("create", "new", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert "new" not in names(cli)


def test_create_workstation_goes_through_a_tor_gateway_or_is_not_made(cli: Cli) -> None:
    assert cli.run("create", "sys-whonix", "--role", "tor-gateway").code == 0
    assert cli.run("create", "sys-plain", "--label", "red", "--prop", "provides_network=True").code == 0
    ran = cli.run("create", "anon", "--role", "tor-workstation", "--prop", "netvm=sys-plain")
    assert ran.code == 1
    assert "not through sys-plain" in ran.err
    assert "anon" not in names(cli)
    assert cli.run("create", "anon", "--role", "tor-workstation", "--prop", "netvm=sys-whonix").code == 0
    assert "anon-vm" in cli.run("tags", "anon").out
    assert cli.run("prefs", "anon", "default_dispvm").out.strip() in ("", "none", "-")


def test_role_of_a_running_net_qube_stays_what_it_was_started_as(cli: Cli) -> None:
    assert cli.run("create", "sys-whonix", "--role", "tor-gateway").code == 0
    assert cli.run("start", "sys-whonix").code == 0
    ran = cli.run("features", "sys-whonix", "service.tor-gateway", "")
    assert ran.code != 0
    assert "must be halted" in ran.err
    assert cli.run("stop", "sys-whonix").code == 0
    assert cli.run("features", "sys-whonix", "service.tor-gateway", "").code == 0


def test_create_standalone_with_template_points_to_clone(cli: Cli) -> None:
    ran = cli.run("create", "own", "--class", "StandaloneVM", "--template", "debian-12", "--label", "red")
    assert ran.code == 2
    assert "hint: insula clone debian-12 own --class StandaloneVM" in ran.err


def test_create_with_missing_template_says_how_to_get_it(cli: Cli) -> None:
    assert cli.run("remove", "--yes", "work").code == 0
    assert cli.run("prefs", "--global", "-D", "default_template").code == 0
    assert cli.run("remove", "--yes", "debian-12").code == 0
    for arguments in (("--template", "debian-12"), ()):
        ran = cli.run("create", "bank", "--label", "green", *arguments)
        assert ran.code == 1
        assert "hint: insula template build debian-12" in ran.err


def test_create_pool_twice_is_wrong_usage(cli: Cli) -> None:
    assert cli.run("create", "bank", "--label", "red", "--pool", "default", "--pool", "private=default").code == 2
    assert cli.run("create", "bank", "--label", "red", "--pool", "private=default").code == 0
    assert cli.run("create", "bank2", "--label", "red", "--pool", "default").code == 0


# start, stop and the rest of a qube's life


def test_start_several_starts_each_and_tells_the_time_on_stderr(cli: Cli) -> None:
    assert cli.run("create", "bank", "--label", "green").code == 0
    ran = cli.run("start", "work", "bank", "work")
    assert ran.code == 0
    assert ran.out == ""
    assert re.sub(r"in [0-9.]+ s", "in … s", ran.err).splitlines() in (
        ["bank started in … s", "work started in … s"],
        ["work started in … s", "bank started in … s"],
    )
    assert state(cli, "bank") == state(cli, "work") == "Running"


def test_start_running_qube_says_it_was_running(cli: Cli) -> None:
    cli.run("start", "work")
    ran = cli.run("start", "work")
    assert ran.code == 0
    assert ran.err == "work was running already\n"


def test_start_one_of_two_fails_and_the_other_runs(cli: Cli) -> None:
    cli.run("create", "bank", "--label", "green")
    cli.in_daemon(lambda: cli.daemon.engine.fail("start", QubesMemoryError("not enough memory"), of="bank"))
    ran = cli.run("start", "bank", "work")
    assert ran.code == 1
    assert "insula: error: bank: not enough memory\nhint: stop a qube" in ran.err
    assert state(cli, "work") == "Running"
    assert state(cli, "bank") == "Halted"


def test_start_json_reports_each(cli: Cli) -> None:
    cli.in_daemon(lambda: cli.daemon.engine.fail("start", QubesException("no kernel")))
    ran = cli.run("start", "work", "--json")
    assert ran.code == 1
    [row] = ran.json
    assert row["seconds"] >= 0
    assert {key: row[key] for key in ("name", "ok", "error")} == {"name": "work", "ok": False, "error": "no kernel"}


def let_a_start_take_until_it_is_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cli.daemon.engine
    gate, start = cli.in_daemon(lambda: engine.hold("start")), engine.start

    async def slowly(name: QubeName, cd: Path | None = None) -> None:
        shown = sys.stderr.buffer
        assert isinstance(shown, io.BytesIO)
        async with asyncio.timeout(120):
            while b"work: starting" not in shown.getvalue():
                await asyncio.sleep(0.01)
        gate.set()
        await start(name, cd)

    monkeypatch.setattr(engine, "start", slowly)


def test_start_that_takes_long_shows_a_line_while_it_waits(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    let_a_start_take_until_it_is_shown(cli, monkeypatch)
    ran = cli.run("start", "work", show_after_s=SHOW_AFTER_S)
    assert ran.err.splitlines()[0] == "work: starting"
    assert ran.err.splitlines()[1].startswith("work started in ")


def test_start_that_takes_long_shows_a_spinner_on_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    let_a_start_take_until_it_is_shown(cli, monkeypatch)
    ran = cli.run("start", "work", terminal=True, show_after_s=SHOW_AFTER_S)
    assert ran.code == 0
    assert "work: starting" in ran.err
    assert "work started in" in ran.err


def test_stop_waits_and_halted_qube_is_no_error(cli: Cli) -> None:
    cli.run("start", "work")
    assert cli.run("stop", "work").code == 0
    assert state(cli, "work") == "Halted"
    ran = cli.run("stop", "work")
    assert (ran.code, ran.err) == (0, "work was not running\n")


def test_stop_all_stops_what_runs(cli: Cli) -> None:
    cli.run("start", "work", "debian-12")
    assert cli.run("stop", "--all").code == 0
    assert state(cli, "work") == state(cli, "debian-12") == "Halted"
    assert cli.run("stop", "--all").err == "nothing was running\n"


def test_stop_that_takes_longer_than_its_timeout_fails_with_hint(cli: Cli) -> None:
    cli.run("start", "work")
    cli.in_daemon(lambda: cli.daemon.engine.hold("shutdown"))
    ran = cli.run("stop", "work", "--timeout", "0.2")
    assert ran.code == 1
    assert ran.err.endswith("insula: error: work did not shut down within 0.2 s\nhint: insula kill work\n")


def test_stop_with_long_timeout_goes_on_after_the_qubes_own_limit(cli: Cli) -> None:
    cli.run("start", "work")
    cli.in_daemon(lambda: cli.daemon.engine.fail("shutdown", QubesVMShutdownTimeoutError("took too long")))
    assert cli.run("stop", "work", "--timeout", "20").code == 0
    assert state(cli, "work") == "Halted"


def test_stop_without_name_or_with_both_is_wrong_usage(cli: Cli) -> None:
    assert cli.run("stop").code == 2
    assert cli.run("stop", "work", "--all").code == 2


def test_kill_ends_the_qube(cli: Cli) -> None:
    cli.run("start", "work")
    assert cli.run("kill", "work").code == 0
    assert state(cli, "work") == "Halted"
    assert cli.run("kill", "work").err == "work was not running\n"


def test_pause_and_unpause_change_the_state(cli: Cli) -> None:
    cli.run("start", "work")
    assert cli.run("pause", "work").code == 0
    assert state(cli, "work") == "Paused"
    assert cli.run("unpause", "work").code == 0
    assert state(cli, "work") == "Running"
    ran = cli.run("unpause", "work")
    assert (ran.code, "hint: insula ls" in ran.err) == (1, True)


@pytest.mark.parametrize("command", ["start", "stop", "kill", "pause", "unpause"])
def test_unknown_qube_is_refused_with_a_guess(cli: Cli, command: str) -> None:
    ran = cli.run(command, "wrk")
    assert ran.code == 1
    assert ran.err.endswith("insula: error: No such qube: 'wrk'\nhint: did you mean work?\n")


# remove


def test_remove_with_yes_deletes(cli: Cli) -> None:
    assert cli.run("remove", "--yes", "work").code == 0
    assert names(cli) == ["dom0", "debian-12"]


def test_remove_without_a_terminal_and_yes_is_refused(cli: Cli) -> None:
    ran = cli.run("remove", "work")
    assert (ran.code, ran.err.splitlines()[-1]) == (2, "hint: --yes")
    assert "work" in names(cli)


@pytest.mark.parametrize(("answer", "is_left"), [(b"y\n", False), (b"n\n", True), (b"", True)])
def test_remove_on_a_terminal_asks(cli: Cli, answer: bytes, is_left: bool) -> None:
    ran = cli.run("remove", "work", stdin=answer, terminal=True)
    assert (ran.code == 0) is not is_left
    assert ("work" in names(cli)) is is_left


def test_remove_template_in_use_is_refused(cli: Cli) -> None:
    ran = cli.run("remove", "--yes", "debian-12")
    assert ran.code == 1
    assert "work" in ran.err


# clone


def test_clone_copies_settings_and_volumes(cli: Cli) -> None:
    for command in (
        ("prefs", "work", "memory", "700"),
        ("prefs", "work", "netvm", "none"),
        ("tags", "work", "--add", "finance"),
        ("features", "work", "x-color", "50% off"),
        ("service", "work", "cups", "off"),
        ("volume", "resize", "work", "private", "3GiB"),
    ):
        assert cli.run(*command).code == 0
    ran = cli.run("clone", "work", "work2", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {"name": "work2", "class": "AppVM", "label": "blue"}
    for command in (("prefs", "{}", "memory"), ("features", "{}"), ("service", "{}")):
        old, new = (cli.run(*(word.format(name) for word in command), "--json").json for name in ("work", "work2"))
        assert new == old
    assert cli.run("tags", "work2", "finance").code == 0
    assert cli.run("volume", "info", "work2", "private", "--json").json["size"] == 3 * 1024**3


def test_clone_to_standalone_gets_the_templates_root(cli: Cli) -> None:
    ran = cli.run("clone", "debian-12", "own", "--class", "StandaloneVM", "--label", "red")
    assert ran.code == 0, ran.err
    [row] = cli.run("ls", "own", "--json").json
    assert (row["class"], row["label"], row["template"]) == ("StandaloneVM", "red", None)


def test_clone_that_fails_halfway_leaves_nothing(cli: Cli) -> None:
    cli.in_daemon(lambda: cli.daemon.engine.fail("volume_clone", QubesException("the disk is full")))
    ran = cli.run("clone", "work", "work2")
    assert ran.code == 1
    assert "work2 was removed again" in ran.err
    assert "insula: error: the disk is full" in ran.err
    assert "work2" not in names(cli)


def test_clone_unknown_or_existing_is_refused(cli: Cli) -> None:
    assert cli.run("clone", "wrok", "other").err.endswith("hint: did you mean work?\n")
    assert cli.run("clone", "work", "debian-12").code == 1
    assert names(cli) == ["dom0", "debian-12", "work"]
