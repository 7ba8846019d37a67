"""``insula cp``: what is copied where, and the copying with a real session and agent in this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.cli.commands.cp import Copy, Place, plan
from insula.cli.failures import CliError
from insula.testing.cli_runner import Cli, served_cli
from insula.testing.local_guest import LocalGuest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("work:a/b", Place("work", "a/b")), ("work:", Place("work", "")), ("a/b", Place(None, "a/b")),
        ("./a:b", Place(None, "./a:b")), (":x", Place(None, ":x")), ("work:a:b", Place("work", "a:b")),
    ],
)  # fmt: skip
def test_place(text: str, expected: Place) -> None:
    assert Place.parse(text) == expected


@pytest.mark.parametrize(
    ("sources", "target", "paths"),
    [
        (["f"], "work:", ["f"]), (["d/f"], "work:g", ["g"]), (["d/"], "work:x/", ["x/d"]),
        (["a", "b"], "work:x", ["x/a", "x/b"]), (["work:/etc/hosts"], "copy", ["copy"]), (["work:f"], "/", ["/f"]),
    ],
)  # fmt: skip
def test_plan(sources: list[str], target: str, paths: list[str]) -> None:
    copies = plan(sources, target)
    assert [copy.target for copy in copies] == paths
    assert {copy.qube for copy in copies} == {"work"}
    assert [copy.is_out for copy in copies] == [target[:4] != "work"] * len(copies)


@pytest.mark.parametrize(
    ("sources", "target"),
    [(["a"], "b"), (["work:a"], "vault:"), (["work:"], "x"), (["."], "work:"), (["a", ".."], "work:")],
)
def test_plan_impossible_is_wrong_usage(sources: list[str], target: str) -> None:
    with pytest.raises(CliError) as raised:
        plan(sources, target)
    assert raised.value.exit_code == 2


def test_plan_from_qube_to_qube_says_how() -> None:
    with pytest.raises(CliError) as raised:
        plan(["work:a"], "vault:")
    assert raised.value.hint == "in work: qvm-copy-to-vm vault a"


def test_copy_is_a_value() -> None:
    assert plan(["f"], "work:") == [Copy("work", "f", "f", is_out=False)]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    with served_cli(tmp_path) as served:
        yield served


@pytest.fixture
def guest(cli: Cli, tmp_path: Path) -> Iterator[LocalGuest]:
    (tmp_path / "work").mkdir()
    made = LocalGuest(tmp_path / "work" / "rpc.sock", tmp_path / "keys")
    try:
        cli.await_in_daemon(made.boot())
        yield made
    finally:
        cli.await_in_daemon(made.end())


@pytest.mark.usefixtures("guest")
def test_there_and_back_starts_the_qube_and_replaces_nothing_here(cli: Cli, tmp_path: Path) -> None:
    """MC-09."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "sub" / "f").write_text("text")
    environment = {"INSULA_DATA_DIR": str(cli.paths.data), "INSULA_RUNTIME_DIR": str(cli.paths.runtime)}
    ran = cli.run("cp", str(tmp_path / "top"), f"work:{inside}/", **environment)
    assert (ran.code, ran.out) == (0, "")
    assert (inside / "top" / "sub" / "f").read_text() == "text"
    ran = cli.run("cp", f"work:{inside}/top/sub/f", str(tmp_path), **environment)
    assert ran.code == 0, ran.err
    assert (tmp_path / "f").read_text() == "text"
    (inside / "top" / "sub" / "f").write_text("other")
    ran = cli.run("cp", f"work:{inside}/top/sub/f", str(tmp_path), **environment)
    assert ran.code == 1
    assert "nothing is replaced" in ran.err
    assert (tmp_path / "f").read_text() == "text"


@pytest.mark.usefixtures("guest")
def test_what_is_not_there_is_said(cli: Cli, tmp_path: Path) -> None:
    environment = {"INSULA_DATA_DIR": str(cli.paths.data), "INSULA_RUNTIME_DIR": str(cli.paths.runtime)}
    assert cli.run("cp", f"work:{tmp_path}/missing", str(tmp_path / "x"), **environment).code == 1
    assert cli.run("cp", str(tmp_path / "missing"), "work:", **environment).code == 1
    assert cli.run("cp", "f", "nonesuch:").code == 1
    assert not (tmp_path / "x").exists()
