"""Menus of file managers: what they call, and what people who see no terminal are shown."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from insula.testing.qube_calls import AGENT, TwoQubes
from insula_agent.desktop import entries
from insula_agent.file_action import VERBS

SHARE = AGENT / "rootfs" / "usr" / "share"
MENUS = [*SHARE.rglob("*.desktop"), *SHARE.rglob("*.nemo_action")]
DIALOG = '#!/bin/sh\nprintf "%s|" "$@" >> "$SHOWN"\necho >> "$SHOWN"\ncase $1 in --progress) cat >> "$SHOWN";; esac\n'


@pytest.fixture
def qubes(tmp_path: Path) -> TwoQubes:
    found = TwoQubes(tmp_path)
    dialog = tmp_path / "tools" / "zenity"
    dialog.write_text(DIALOG)
    dialog.chmod(0o755)
    return found


def run(qubes: TwoQubes, *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and what was shown."""
    shown = qubes.here.parent / "shown"
    shown.unlink(missing_ok=True)
    done = qubes.run("insula-file-action", *arguments, more={"SHOWN": str(shown)})
    return done.returncode, shown.read_text().splitlines() if shown.exists() else []


def test_copy_shows_progress_to_its_end(qubes: TwoQubes) -> None:
    (qubes.here / "f").write_bytes(bytes(3_000_000))
    code, shown = run(qubes, "copy", str(qubes.here / "f"))
    assert code == 0
    assert shown[0].startswith("--progress|")
    assert shown[-1] == "100"
    assert (qubes.room / "f").stat().st_size == 3_000_000


def test_move_removes_here(qubes: TwoQubes) -> None:
    (qubes.here / "f").touch()
    assert run(qubes, "move", "f")[0] == 0
    assert not (qubes.here / "f").exists()


def test_failure_is_told_in_a_window_as_plain_text(qubes: TwoQubes) -> None:
    """MC-50: a name is no markup."""
    (qubes.room / "<b>f").mkdir(parents=True)
    (qubes.here / "<b>f").touch()
    code, shown = run(qubes, "copy", "<b>f")
    assert code == 1
    assert shown[-1] == '--error|--no-markup|--text=the other qube has "<b>f" already; nothing is replaced|'
    qubes.refuse()
    assert run(qubes, "open", "<b>f")[1][-1] == "--error|--no-markup|--text=the call was refused|"


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("open", "@default qubes.OpenInVM"), ("open-in-disposable", "@dispvm qubes.OpenInVM"),
        ("view-in-disposable", "@dispvm qubes.OpenInVM"),
    ],
)  # fmt: skip
def test_open_calls(qubes: TwoQubes, verb: str, call: str) -> None:
    (qubes.here / "f").touch()
    run(qubes, verb, "f")
    assert qubes.calls == [call]


def test_document_that_cannot_be_converted_is_told_in_a_window(qubes: TwoQubes) -> None:
    (qubes.here / "f.pdf").write_text("x")
    qubes.refuse()
    code, shown = run(qubes, "convert", "f.pdf")
    assert (code, shown[-1]) == (1, "--error|--no-markup|--text=f.pdf: the call was refused|")
    assert qubes.calls == ["@dispvm qubes.PdfConvert+300"]
    assert (qubes.here / "f.pdf").read_text() == "x"


def test_without_windows_it_works_all_the_same(qubes: TwoQubes) -> None:
    (qubes.here.parent / "tools" / "zenity").unlink()
    (qubes.here / "f").touch()
    assert (
        qubes.run("insula-file-action", "copy", "f", more={"PATH": f"{qubes.here.parent}/tools:/bin"}).returncode == 0
    )
    assert (qubes.room / "f").exists()


@pytest.mark.parametrize("arguments", [[], ["copy"], ["remove", "f"]])
def test_usage_is_told(qubes: TwoQubes, arguments: list[str]) -> None:
    assert qubes.run("insula-file-action", *arguments).stderr.startswith(b"usage: ")


def commands(menu: Path) -> list[str]:
    return [line.partition("=")[2] for line in menu.read_text().splitlines() if line.startswith("Exec=")]


@pytest.mark.parametrize("menu", MENUS, ids=lambda path: path.name)
def test_menu_calls_a_command_of_ours_with_its_files(menu: Path) -> None:
    assert commands(menu)
    for text in commands(menu):
        words = shlex.split(text)
        assert words == entries.split_exec(text)
        assert (AGENT / "bin" / Path(words[0]).name).is_file()
        assert words[0].startswith("/usr/bin/")
        if words[0].endswith("insula-file-action"):
            assert words[1] in VERBS
        assert words[-1] in ("%F", "%u")


def test_every_verb_is_in_every_menu() -> None:
    for folder, count in (("kio", 2), ("file-manager", 6), ("nemo", 6), ("Thunar", 6)):
        menus = [menu for menu in MENUS if menu.relative_to(SHARE).parts[0] == folder]
        assert len(menus) == count
        assert {shlex.split(text)[1] for menu in menus for text in commands(menu)} == set(VERBS)
    extension = (SHARE / "nautilus-python" / "extensions" / "insula.py").read_text()
    assert all(f'("{verb}", ' in extension for verb in VERBS)
