"""How the prompt starts with the desktop: files that desktops and systemd look for.

Two of them, since desktops differ. A desktop that is run by systemd has ``graphical-session.target``: there a unit
starts the prompt, and again if it fails. Any other starts what is in its autostart folder (XDG); systemd's own reader
of that folder passes over our entry (``X-systemd-skip``). Where both start one, the second finds the first and ends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from insula.daemon.prompt_program import command

UNIT = "insula-prompt.service"
ENTRY = "insula-prompt.desktop"
_TARGET = "graphical-session.target"
_KEPT = ("INSULA_DATA_DIR", "INSULA_RUNTIME_DIR")
"""An installation elsewhere than usual is still the one that is meant after a login."""


def install(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Write the files; returns them. From the next login on the prompt starts. :raise OSError:"""
    env = os.environ if environ is None else environ
    settings = {name: env[name] for name in _KEPT if env.get(name)}
    entry, unit, wanted = _files(env)
    write(entry, desktop_entry(command(), settings))
    write(unit, service_unit(command(), settings))
    wanted.parent.mkdir(parents=True, exist_ok=True)
    wanted.unlink(missing_ok=True)
    wanted.symlink_to(unit)  # what `systemctl --user enable` does
    return [entry, unit, wanted]


def remove(environ: Mapping[str, str] | None = None) -> list[Path]:
    """Undo :func:`install`; returns what was there. A prompt that runs goes on. :raise OSError:"""
    files = [path for path in _files(os.environ if environ is None else environ) if path.is_symlink() or path.exists()]
    for path in files:
        path.unlink()
    return files


def desktop_entry(words: Sequence[str], settings: Mapping[str, str]) -> str:
    """Desktop Entry Specification 1.5, "The Exec key"."""
    if settings:
        words = ["env", *(f"{name}={value}" for name, value in settings.items()), *words]
    return "\n".join(
        [
            "[Desktop Entry]",
            "Type=Application",
            "Name=Insula prompt",
            "Comment=Asks whether calls between qubes may go on",
            f"Exec={exec_line(words)}",
            "Terminal=false",
            "NoDisplay=true",
            "X-GNOME-Autostart-enabled=true",
            "X-systemd-skip=true",
            "",
        ]
    )


def service_unit(words: Sequence[str], settings: Mapping[str, str]) -> str:
    """systemd.service(5); quoting: systemd.syntax(7)."""
    return "\n".join(
        [
            "[Unit]",
            "Description=Asks whether calls between qubes may go on",
            f"PartOf={_TARGET}",
            f"After={_TARGET}",
            "",
            "[Service]",
            *(f"Environment={_unit_word(f'{name}={value}')}" for name, value in settings.items()),
            f"ExecStart={' '.join(_unit_word(word, is_command=True) for word in words)}",
            "Restart=on-failure",
            "RestartSec=2",
            "",
            "[Install]",
            f"WantedBy={_TARGET}",
            "",
        ]
    )


def _files(env: Mapping[str, str]) -> tuple[Path, Path, Path]:
    """Entry, unit, and the link that enables the unit."""
    config = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config")
    units = config / "systemd" / "user"
    return config / "autostart" / ENTRY, units / UNIT, units / f"{_TARGET}.wants" / UNIT


def write(path: Path, text: str) -> None:
    """Replace a file at once; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def exec_line(words: Sequence[str]) -> str:
    """A command as the value of the Exec key."""
    return " ".join(map(_desktop_word, words))


def _desktop_word(word: str) -> str:
    """Quoted as an argument, then escaped as a string of the file: a backslash goes through both."""
    quoted = "".join(f"\\{letter}" if letter in '"`$\\' else letter for letter in word.replace("%", "%%"))
    return f'"{quoted}"'.replace("\\", "\\\\")


def _unit_word(word: str, *, is_command: bool = False) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if is_command else escaped}"'
