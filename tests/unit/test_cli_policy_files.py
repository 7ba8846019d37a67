"""``insula policy edit|get|replace|remove``: with real files and editors that are small programs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from insula.cli.policy_editing import editor_command
from insula.daemon.paths import Paths
from insula.policy.store import PolicyStore, token_of
from insula.testing.cli_runner import Ran, run_cli

GOOD = "qubes.Filecopy  *  work  vault  allow\n"
BAD = "qubes.Filecopy  *  work  vault  perhaps\n"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "data", tmp_path / "run")
    paths.policy.mkdir(parents=True)
    return paths


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies to edit are made, to see what stays."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def editor(tmp_path: Path, *steps: str) -> str:
    """A command that does one of the steps each time it is called; ``file`` is the path it is given."""
    log = tmp_path / "editor.log"
    program = tmp_path / "editor.py"
    program.write_text(
        "import pathlib, sys\n"
        f"log = pathlib.Path({str(log)!r})\n"
        "calls = log.read_text().count('\\n') if log.exists() else 0\n"
        "log.open('a').write(repr(sys.argv[1:]) + '\\n')\n"
        "file = pathlib.Path(sys.argv[-1])\n"
        f"exec({list(steps)!r}[calls])\n"
    )
    return shlex.join([sys.executable, str(program)])


def write(text: str) -> str:
    return f"file.write_text({text!r})"


def policy(paths: Paths, name: str = "30-user") -> Path:
    return paths.policy / f"{name}.policy"


def edit(paths: Paths, *arguments: str, stdin: str = "", terminal: bool = False, **environment: str) -> Ran:
    return run_cli(
        paths, "policy", "edit", *arguments, stdin=stdin.encode(), terminal=terminal, **{"VISUAL": "", **environment}
    )


def test_edit_saves_what_the_editor_left(paths: Paths, tmp_path: Path, scratch: Path) -> None:
    policy(paths).write_text("# before\n")
    ran = edit(paths, EDITOR=editor(tmp_path, f"assert file.read_text() == '# before\\n'; {write(GOOD)}"))
    assert (ran.code, ran.out) == (0, "30-user: saved\n")
    assert policy(paths).read_text() == GOOD
    assert list(scratch.iterdir()) == []


def test_edit_makes_a_file_and_one_of_the_includes(paths: Paths, tmp_path: Path) -> None:
    assert edit(paths, "40-new", EDITOR=editor(tmp_path, write(GOOD))).code == 0
    assert policy(paths, "40-new").read_text() == GOOD
    assert edit(paths, "mine", "--include", EDITOR=editor(tmp_path, "", write(GOOD))).code == 0
    assert (paths.policy / "include" / "mine").read_text() == GOOD


def test_edit_without_a_change_saves_nothing(paths: Paths, tmp_path: Path, scratch: Path) -> None:
    policy(paths).write_text(GOOD)
    before = policy(paths).stat()
    ran = edit(paths, EDITOR=editor(tmp_path, "pass"))
    assert (ran.code, ran.out) == (0, "30-user: nothing was changed\n")
    after = policy(paths).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(scratch.iterdir()) == []


def test_edit_with_a_mistake_tells_its_line_and_offers_to_edit_again(paths: Paths, tmp_path: Path) -> None:
    policy(paths).write_text(GOOD)
    command = editor(tmp_path, write(f"# fine\n{BAD}"), write(GOOD + "# more\n"))
    ran = edit(paths, stdin="y\n", terminal=True, EDITOR=command)
    assert ran.code == 0, ran.err
    assert "30-user.policy:2: 'perhaps' is no action (allow, ask, deny)" in ran.err
    assert "Edit again?" in ran.err
    assert policy(paths).read_text() == GOOD + "# more\n"


def test_editor_that_can_begins_in_the_line_of_the_mistake(paths: Paths, tmp_path: Path) -> None:
    program = tmp_path / "nano"
    program.write_text(f'#!/bin/sh\nexec {editor(tmp_path, write(GOOD + BAD), write(GOOD))} "$@"\n')
    program.chmod(0o755)
    assert edit(paths, stdin="y\n", terminal=True, EDITOR=str(program)).code == 0
    first, second = (tmp_path / "editor.log").read_text().splitlines()
    assert "+2" not in first
    assert second.startswith("['+2', ")


@pytest.mark.parametrize(("stdin", "terminal"), [("n\n", True), ("", False)])
def test_edit_given_up_keeps_the_file_as_it_was_and_the_text_elsewhere(
    paths: Paths, tmp_path: Path, scratch: Path, stdin: str, terminal: bool
) -> None:
    policy(paths).write_text(GOOD)
    ran = edit(paths, stdin=stdin, terminal=terminal, EDITOR=editor(tmp_path, write(BAD)))
    assert ran.code == 1
    assert "not saved: it would not be a valid policy" in ran.err
    assert policy(paths).read_text() == GOOD
    [kept] = scratch.glob("*/30-user.policy")
    assert kept.read_text() == BAD
    assert f"what you wrote is in {kept}" in ran.err


def test_mc29_second_editor_is_refused_and_loses_nothing(paths: Paths, tmp_path: Path, scratch: Path) -> None:
    """Somebody else saves while the first one is still in the editor."""
    policy(paths).write_text("# before\n")
    other = f"import subprocess; pathlib.Path({str(policy(paths))!r}).write_text('# of somebody else\\n')"
    ran = edit(paths, EDITOR=editor(tmp_path, f"{other}; {write(GOOD)}"))
    assert ran.code == 1
    assert "changed meanwhile" in ran.err
    assert policy(paths).read_text() == "# of somebody else\n"
    [kept] = scratch.glob("*/30-user.policy")
    assert kept.read_text() == GOOD


def test_mc29_file_that_came_meanwhile_is_not_overwritten(paths: Paths, tmp_path: Path) -> None:
    other = f"pathlib.Path({str(policy(paths))!r}).write_text('# of somebody else\\n')"
    ran = edit(paths, EDITOR=editor(tmp_path, f"{other}; {write(GOOD)}"))
    assert ran.code == 1
    assert policy(paths).read_text() == "# of somebody else\n"


@pytest.mark.parametrize(
    ("step", "told"),
    [("sys.exit(3)", "ended with status 3"), ("file.unlink()", "left no file")],
)
def test_editor_that_fails_saves_nothing(paths: Paths, tmp_path: Path, scratch: Path, step: str, told: str) -> None:
    policy(paths).write_text(GOOD)
    ran = edit(paths, EDITOR=editor(tmp_path, step))
    assert ran.code == 1
    assert told in ran.err
    assert policy(paths).read_text() == GOOD
    assert list(scratch.iterdir()) == []


def test_text_of_an_editor_that_failed_is_kept(paths: Paths, tmp_path: Path, scratch: Path) -> None:
    assert edit(paths, EDITOR=editor(tmp_path, f"{write(GOOD)}; sys.exit(1)")).code == 1
    [kept] = scratch.glob("*/30-user.policy")
    assert kept.read_text() == GOOD
    assert not policy(paths).exists()


def test_editor_is_visual_then_editor_then_what_is_there(tmp_path: Path) -> None:
    assert editor_command({"VISUAL": "code --wait", "EDITOR": "vi"}) == ["code", "--wait"]
    assert editor_command({"VISUAL": "", "EDITOR": "'/a b/vi'"}) == ["/a b/vi"]
    (tmp_path / "vi").write_text("")
    (tmp_path / "vi").chmod(0o755)
    assert editor_command({"PATH": str(tmp_path)}) == ["vi"]
    with pytest.raises(Exception, match="no editor"):
        editor_command({"PATH": "/nowhere"})


def test_editor_that_is_not_there_is_said(paths: Paths) -> None:
    ran = edit(paths, EDITOR="/nowhere/editor")
    assert (ran.code, "does not start" in ran.err) == (1, True)


def test_name_outside_the_alphabet_is_refused_before_the_editor(paths: Paths, tmp_path: Path) -> None:
    ran = edit(paths, "../x", EDITOR=editor(tmp_path, write(GOOD)))
    assert ran.code == 1
    assert not (tmp_path / "editor.log").exists()


def test_get_prints_content_and_with_json_its_token(paths: Paths) -> None:
    policy(paths).write_text(GOOD)
    assert run_cli(paths, "policy", "get", "30-user").out == GOOD
    told = run_cli(paths, "policy", "get", "30-user", "--json").json
    assert told == {"name": "30-user", "token": token_of(GOOD.encode()), "content": GOOD}
    assert run_cli(paths, "policy", "get", "gone").code == 1


def test_get_shows_control_characters_instead_of_sending_them(paths: Paths) -> None:
    policy(paths).write_text("# \x1b[2J\n")
    assert run_cli(paths, "policy", "get", "30-user").out == "# \\x1b[2J\n"


def test_replace_makes_a_file_from_a_file_or_standard_input(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "new").write_text(GOOD)
    assert run_cli(paths, "policy", "replace", "40-a", str(tmp_path / "new")).out == "40-a: saved\n"
    assert run_cli(paths, "policy", "replace", "40-b", stdin=GOOD.encode()).code == 0
    assert run_cli(paths, "policy", "replace", "40-c", "-", stdin=GOOD.encode()).code == 0
    assert {path.name for path in paths.policy.iterdir()} == {"40-a.policy", "40-b.policy", "40-c.policy"}


def test_mc29_replace_of_a_file_that_is_there_needs_its_version(paths: Paths) -> None:
    policy(paths).write_text("# before\n")
    token = token_of(b"# before\n")
    ran = run_cli(paths, "policy", "replace", "30-user", stdin=GOOD.encode())
    assert (ran.code, "--token" in ran.err) == (1, True)
    assert run_cli(paths, "policy", "replace", "30-user", "--token", token, stdin=GOOD.encode()).code == 0
    assert run_cli(paths, "policy", "replace", "30-user", "--token", token, stdin=b"# later\n").code == 1
    assert policy(paths).read_text() == GOOD
    assert run_cli(paths, "policy", "replace", "30-user", "--token", "any", stdin=b"# later\n").code == 0
    assert policy(paths).read_text() == "# later\n"


def test_replace_with_a_mistake_is_refused_with_file_and_line(paths: Paths) -> None:
    """MC-25."""
    ran = run_cli(paths, "policy", "replace", "40-a", stdin=(GOOD + BAD).encode())
    assert ran.code == 1
    assert "40-a.policy:2: 'perhaps' is no action" in ran.err
    assert not policy(paths, "40-a").exists()


def test_replace_with_too_much_is_refused(paths: Paths) -> None:
    ran = run_cli(paths, "policy", "replace", "40-a", stdin=b"#" * 2_000_000)
    assert (ran.code, "at most" in ran.err) == (1, True)


def test_remove_asks_and_refuses_what_is_still_included(paths: Paths) -> None:
    policy(paths).write_text("!include include/mine\n")
    (paths.policy / "include").mkdir()
    (paths.policy / "include" / "mine").write_text(GOOD)
    assert run_cli(paths, "policy", "remove", "30-user").code == 2
    assert run_cli(paths, "policy", "remove", "30-user", stdin=b"n\n", terminal=True).code == 1
    ran = run_cli(paths, "policy", "remove", "mine", "--include", "--yes")
    assert (ran.code, "30-user.policy:1" in ran.err) == (1, True)
    assert run_cli(paths, "policy", "remove", "30-user", stdin=b"y\n", terminal=True).code == 0
    assert run_cli(paths, "policy", "remove", "mine", "--include", "--yes").code == 0
    assert PolicyStore(paths.policy).names() == []
    assert run_cli(paths, "policy", "remove", "30-user", "--yes").code == 1


@pytest.mark.parametrize("command", ["edit", "get", "replace", "remove"])
def test_without_a_policy_folder_it_is_said_how_to_get_one(paths: Paths, command: str) -> None:
    paths.policy.rmdir()
    ran = run_cli(paths, "policy", command, "30-user", *(["--yes"] if command == "remove" else []))
    assert ran.code == 1
    assert "there is no policy folder" in ran.err
    assert "hint: insula ls" in ran.err
