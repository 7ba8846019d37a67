"""``insula policy``: check, list, eval, graph, against a served system (dom0, debian-12, work) and files on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.testing.cli_runner import Cli, run_cli, served_cli

POLICY = """\
# what work may do
qubes.Filecopy  *  work  @default     allow  target=debian-12
qubes.Filecopy  *  work  debian-12    ask    default_target=debian-12
qubes.Gpg       +sign  @type:AppVM  @adminvm  allow  user=signer
*               *  @anyvm  @anyvm     deny
"""


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        write(served, POLICY)
        yield served


def write(cli: Cli, text: str, name: str = "50-user.policy") -> None:
    cli.paths.policy.mkdir(exist_ok=True)
    (cli.paths.policy / name).write_text(text)


def test_check_says_how_much_there_is_and_needs_no_daemon(tmp_path: Path, cli: Cli) -> None:
    ran = cli.run("policy", "check")
    assert (ran.code, ran.out) == (0, "4 rules in 1 file, no problem\n")
    assert cli.run("policy", "check", "--json").json == {"ok": True, "problems": []}
    (tmp_path / "other").mkdir()
    assert run_cli(cli.paths, "policy", "check", "--folder", str(tmp_path / "other")).out.startswith("0 rules")


def test_check_lists_problems_with_file_and_line(cli: Cli) -> None:
    write(cli, "qubes.Gpg * work vault perhaps\n!include gone\n", "10-more.policy")
    ran = cli.run("policy", "check")
    assert ran.code == 1
    assert ran.lines == [
        f"{cli.paths.policy}/10-more.policy:1: 'perhaps' is no action (allow, ask, deny)",
        f"{cli.paths.policy}/10-more.policy:2: 'gone': no such file or directory",
    ]
    assert ran.err == "insula: error: 2 problems: every call is denied until this is repaired\n"


def test_missing_folder_is_a_problem_not_an_empty_policy(cli: Cli, tmp_path: Path) -> None:
    ran = cli.run("policy", "check", "--folder", str(tmp_path / "gone"))
    assert ran.code == 1
    assert "no such file or directory" in ran.out


def test_list_prints_rules_in_order_with_their_lines(cli: Cli) -> None:
    assert [line.split(maxsplit=1) for line in cli.run("policy", "list").lines][1:] == [
        ["50-user.policy:2", "qubes.Filecopy * work @default allow target=debian-12"],
        ["50-user.policy:3", "qubes.Filecopy * work debian-12 ask default_target=debian-12"],
        ["50-user.policy:4", "qubes.Gpg +sign @type:AppVM @adminvm allow user=signer"],
        ["50-user.policy:5", "* * @anyvm @anyvm deny"],
    ]
    only = cli.run("policy", "list", "qubes.Gpg", "--json").json
    assert [rule["service"] for rule in only] == ["qubes.Gpg", "*"]
    assert only[0]["where"] == f"{cli.paths.policy}/50-user.policy:4"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("work", "@default", "qubes.Filecopy"), "allow: debian-12 (50-user.policy:2)"),
        (("work", "debian-12", "qubes.Filecopy"), "ask: debian-12 (50-user.policy:3)\noffered first: debian-12"),
        (("work", "dom0", "qubes.Gpg+sign"), "allow: dom0 as signer (50-user.policy:4)"),
        (("work", "dom0", "qubes.Gpg"), "deny: no rule matches"),
        (("debian-12", "work", "qubes.Gpg+sign"), "deny: a rule denies it (50-user.policy:5)"),
    ],
)
def test_eval_tells_the_decision_and_its_line(cli: Cli, words: tuple[str, ...], told: str) -> None:
    ran = cli.run("policy", "eval", *words)
    assert (ran.code, ran.out) == (0, told + "\n")


def test_eval_explain_shows_what_became_of_every_rule(cli: Cli) -> None:
    ran = cli.run("policy", "eval", "work", "debian-12", "qubes.Filecopy", "--explain", "--json").json
    assert ran["decision"] == "ask"
    assert [entry["outcome"] for entry in ran["considered"]] == [
        "another target",
        "decides",
        "another service",
        "an earlier rule decided",
    ]
    lines = cli.run("policy", "eval", "work", "debian-12", "qubes.Filecopy", "--explain").lines
    assert lines[-4].endswith("another target")


def test_eval_with_a_broken_policy_denies_and_says_why(cli: Cli) -> None:
    write(cli, "nonsense\n")
    ran = cli.run("policy", "eval", "work", "debian-12", "qubes.Filecopy")
    assert ran.lines[0] == "deny: the policy has problems, so nothing is allowed"
    assert ran.lines[1].startswith(f"{cli.paths.policy}/50-user.policy:1: ")


def test_graph_lists_what_is_not_denied(cli: Cli) -> None:
    assert cli.run("policy", "graph", "--json").json == [
        {
            "service": service, "argument": argument, "source": "work", "target": target, "action": action,
            "where": f"50-user.policy:{line}",
        }
        for service, argument, target, action, line in (
            ("qubes.Filecopy", "+", "debian-12", "ask", 3),
            ("qubes.Filecopy", "+", "debian-12", "allow", 2),
            ("qubes.Gpg", "+sign", "dom0", "allow", 4),
        )
    ]  # fmt: skip
    assert [line.split()[0] for line in cli.run("policy", "graph", "qubes.Gpg").lines] == ["SERVICE", "qubes.Gpg+sign"]


def test_graph_dot_has_an_arrow_for_each_pair(cli: Cli) -> None:
    assert cli.run("policy", "graph", "--dot").lines[3:] == [
        '  "work" -> "debian-12" [label="qubes.Filecopy"];',
        '  "work" -> "dom0" [label="qubes.Gpg+sign"];',
        "}",
    ]


def test_graph_of_a_broken_policy_is_refused(cli: Cli) -> None:
    write(cli, "nonsense\n")
    ran = cli.run("policy", "graph")
    assert ran.code == 1
    assert ran.err.endswith("hint: insula policy check\n")
