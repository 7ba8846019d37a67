"""Starting an application, by the service as it is run."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from insula_agent.desktop import elsewhere
from insula_agent.desktop.entries import EntryError, data_folders, find
from insula_agent.desktop.launch import plan
from insula_agent.opening.handlers import candidates

SRC = Path(__file__).parents[2] / "src"
SERVICE = SRC / "insula_agent" / "rpc" / "qubes.StartApp"


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_DATA_DIRS": "/nowhere", "INSULA_LIBRARY": str(SRC)}
    return subprocess.run([SERVICE, *arguments], env=env, capture_output=True, check=False, timeout=120)


def place(folder: Path, name: str, text: str) -> None:
    path = folder / "applications" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_application_is_found_by_its_joined_name_and_becomes_the_call(tmp_path: Path) -> None:
    place(
        tmp_path,
        "kde/a.desktop",
        f'[Desktop Entry]\nPath={tmp_path}\nExec=sh -c "pwd; echo \\\\"\\\\$0\\\\"; exit 7" %c %U\nName=$(id)\n',
    )
    done = start(tmp_path, "kde-a")
    assert done.stdout.decode() == f"{tmp_path}\n$(id)\n"
    assert done.returncode == 7


@pytest.mark.parametrize("wanted", ["nothing", "../a", "/etc/passwd", "-x", "*"])
def test_application_that_is_not_there_is_127(tmp_path: Path, wanted: str) -> None:
    """MC-16, MC-17: an identifier is looked up, never opened."""
    place(tmp_path, "b.desktop", "[Desktop Entry]\nExec=echo started\n")
    place(tmp_path, "../a.desktop", "[Desktop Entry]\nExec=echo started\n")
    done = start(tmp_path, wanted)
    assert (done.returncode, done.stdout) == (127, b"")


def test_no_identifier_and_broken_entry_are_125(tmp_path: Path) -> None:
    place(tmp_path, "b.desktop", '[Desktop Entry]\nExec="sh\n')
    assert start(tmp_path).returncode == 125
    assert start(tmp_path, "b").returncode == 125


def test_program_that_is_missing_is_127(tmp_path: Path) -> None:
    place(tmp_path, "b.desktop", "[Desktop Entry]\nExec=no.such.program\n")
    assert start(tmp_path, "b").returncode == 127


def test_application_meets_signals_as_usual(tmp_path: Path) -> None:
    """Python ignores SIGPIPE; what it becomes must not, or its pipelines would not end."""
    place(tmp_path, "b.desktop", "[Desktop Entry]\nExec=grep SigIgn /proc/self/status\n")
    # (A machine's container may have signals of the C library ignored from its start.)
    usual = subprocess.run(["/bin/grep", "SigIgn", "/proc/self/status"], capture_output=True, check=True, timeout=120)
    met = start(tmp_path, "b").stdout
    assert met == usual.stdout
    assert not int(met.split()[1], 16) >> (signal.SIGPIPE - 1) & 1


def test_plan_terminal_and_links() -> None:
    assert plan({"Exec": "top -d 1", "Terminal": "true"}, "/p") == ["x-terminal-emulator", "-e", "top", "-d", "1"]
    with pytest.raises(EntryError):
        plan({"Type": "Link", "Exec": "a"}, "/p")


# applications whose files are opened in a disposable


def marked(keys: Path, *names: str) -> None:
    keys.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (keys / f"hash-app-dispvm%2F{number}").write_text(name)


def test_application_is_marked_by_its_whole_name_only(tmp_path: Path) -> None:
    marked(tmp_path, "org.mail", "org.mail.Other")
    (tmp_path / "qubes-service%2Fother").write_text("other")
    for name, expected in (("org.mail", True), ("org", False), ("org.mail.Other", True), ("other", False)):
        assert elsewhere.is_marked(f"{name}.desktop", str(tmp_path)) == expected
    assert not elsewhere.is_marked("org.mail.desktop", str(tmp_path / "none"))


def test_only_a_disposable_opens_anything_all_else_is_as_usual(tmp_path: Path) -> None:
    usual = tmp_path / "share"
    for name in (elsewhere.OPENER, "viewer.desktop"):
        place(usual, name, f"[Desktop Entry]\nExec={name} %u\nMimeType=text/plain;text/html;\n")
    (usual / "mime").mkdir()
    (usual / "mime" / "types").write_text("text/plain\ntext/x-odd\nx-scheme-handler/odd\n")
    (usual / "icons").mkdir()
    home = tmp_path / "home"
    (home / ".config").mkdir(parents=True)
    (home / ".config" / "mimeapps.list").write_text("[Default Applications]\ntext/plain=viewer.desktop\n")
    environment = {"HOME": str(home), "XDG_DATA_DIRS": f"{usual}:/nowhere", "XDG_RUNTIME_DIR": str(tmp_path)}
    environment["XDG_DATA_DIRS"] = elsewhere.data_dirs(environment, str(home))
    for kind in ("text/plain", "text/x-odd", "x-scheme-handler/https"):
        usable = [
            name
            for name in candidates([kind], environment, str(home))
            if find(data_folders(environment, str(home)), name)
        ]
        assert usable == [elsewhere.OPENER]
    assert (Path(environment["XDG_DATA_DIRS"]) / "icons").resolve() == usual / "icons"


def test_without_what_opens_in_a_disposable_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(elsewhere.NoOpener):
        elsewhere.data_dirs({"XDG_DATA_DIRS": str(tmp_path)}, str(tmp_path))
