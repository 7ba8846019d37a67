"""Files that start the prompt with the desktop."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from insula.manager import autostart

PATHS = st.text(st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_characters="\x7f"), min_size=1)


def exec_words(entry: str) -> list[str]:
    """As a desktop reads the Exec key: escapes of the file, quotes, field codes."""
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(entry)
    value = re.sub(r"\\(.)", r"\1", parser["Desktop Entry"]["Exec"])
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', value)
    return [re.sub(r"\\(.)", r"\1", word).replace("%%", "%") for word in words]


def unit_words(line: str) -> list[str]:
    """As systemd reads a command."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


@given(st.lists(PATHS, min_size=1, max_size=3), PATHS)
def test_any_path_reaches_the_command_unchanged(words: list[str], value: str) -> None:
    entry = autostart.desktop_entry(words, {"INSULA_DATA_DIR": value})
    assert exec_words(entry) == ["env", f"INSULA_DATA_DIR={value}", *words]
    unit = autostart.service_unit(words, {})
    [line] = [line for line in unit.split("\n") if line.startswith("ExecStart=")]
    assert unit_words(line.removeprefix("ExecStart=")) == words


def test_install_writes_entry_unit_and_link_and_remove_takes_them_away(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "INSULA_RUNTIME_DIR": "/somewhere else"}
    for _ in range(2):  # again is no harm
        files = autostart.install(env)
        assert [str(path.relative_to(tmp_path)) for path in files] == [
            ".config/autostart/insula-prompt.desktop",
            ".config/systemd/user/insula-prompt.service",
            ".config/systemd/user/graphical-session.target.wants/insula-prompt.service",
        ]
    entry, unit, link = files
    assert exec_words(entry.read_text())[1:] == ["INSULA_RUNTIME_DIR=/somewhere else", *autostart.command()]
    assert 'Environment="INSULA_RUNTIME_DIR=/somewhere else"' in unit.read_text()
    assert link.resolve() == unit.resolve()
    assert sorted(autostart.remove(env)) == sorted(files)
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert autostart.remove(env) == []


def test_xdg_config_home_is_where_they_go(tmp_path: Path) -> None:
    files = autostart.install({"HOME": "/nowhere", "XDG_CONFIG_HOME": str(tmp_path)})
    assert all(path.is_relative_to(tmp_path) for path in files)
