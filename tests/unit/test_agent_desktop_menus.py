"""The list of applications, by the service as it is run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from insula_agent.desktop.menus import kept_folders, listing

SRC = Path(__file__).parents[2] / "src"
SERVICE = SRC / "insula_agent" / "rpc" / "qubes.GetAppmenus"


def ask(home: Path) -> str:
    env = {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home / "own"), "XDG_DATA_DIRS": str(home / "shared")}
    env["INSULA_LIBRARY"] = str(SRC)
    return subprocess.run([SERVICE], env=env, capture_output=True, check=True, timeout=120).stdout.decode()


def place(folder: Path, name: str, text: str) -> None:
    path = folder / "applications" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_listing_has_the_published_form(tmp_path: Path) -> None:
    place(tmp_path / "shared", "kde/a.desktop", "[Desktop Entry]\nName=A\nExec=rm -rf /\n[Desktop Action b]\nExec=c\n")
    place(tmp_path / "shared", "hidden.desktop", "[Desktop Entry]\nName=H\nNoDisplay=true\n")
    place(tmp_path / "shared", "saver.desktop", "[Desktop Entry]\nName=S\nCategories=Screensaver;\n")
    place(tmp_path / "shared", "z.desktop", "[Desktop Entry]\nName=shared\n")
    place(tmp_path / "own", "z.desktop", "[Desktop Entry]\nName=own\n")
    assert ask(tmp_path) == (
        "z.desktop:Name=own\n\nkde-a.desktop:Name=A\nkde-a.desktop:Exec=qubes-desktop-run kde-a.desktop\n\n"
    )


def test_unreadable_entry_leaves_the_others(tmp_path: Path) -> None:
    place(
        tmp_path / "shared",
        "a.desktop",
        "[Desktop Entry]\nName=\udcff".encode("utf-8", "surrogatepass").decode("latin1"),
    )
    (tmp_path / "shared/applications/b.desktop").symlink_to("nowhere")
    place(tmp_path / "shared", "c.desktop", "[Desktop Entry]\nName=C\n")
    assert ask(tmp_path).endswith("c.desktop:Name=C\n\n")


def test_kept_folders_by_persistence(tmp_path: Path) -> None:
    here = str(tmp_path)
    assert kept_folders([here, "/proc"], "full", here) == [here, "/proc"]
    assert kept_folders([here, "/proc", "/nowhere"], "rw-only", here) == [here]
    assert kept_folders([here], "rw-only", "/nowhere") == []
    assert kept_folders([here], "none", here) == []


def test_listing_of_nothing_is_nothing() -> None:
    assert listing("a.desktop", []) == ""
