"""Desktop entries: what they say, and what becomes of text that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.desktop import entries
from insula_agent.desktop.entries import EntryError

TEXT = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=20)


def test_parse_only_first_group_comments_and_noise_skipped() -> None:
    text = "# c\n\n[Desktop Entry]\nName = Files\nnoise\n# Exec=no\nExec=a b=c\n[Desktop Action x]\nExec=other\n"
    assert entries.parse(text) == [("Name", "Files"), ("Exec", "a b=c")]


@pytest.mark.parametrize("text", ["", "Name=x", "[Other]\nName=x\n[Desktop Entry]\nName=y", "[Desktop Entry]"])
def test_parse_without_first_group_is_empty(text: str) -> None:
    assert entries.parse(text) == []


@given(st.text(max_size=200))
def test_parse_any_text_gives_keys_of_the_alphabet(text: str) -> None:
    for key, value in entries.parse(f"[Desktop Entry]\n{text}"):
        assert key.isascii()
        assert "\n" not in key + value
        assert "=" not in key


@given(st.lists(TEXT, min_size=1, max_size=5).filter(lambda items: bool(items[0])))
def test_split_exec_quoted_arguments_come_back(arguments: list[str]) -> None:
    def quote(text: str) -> str:
        for letter in '\\"`$':
            text = text.replace(letter, "\\" + letter)
        return '"' + text.replace("\\", "\\\\").replace("\t", "\\t") + '"'

    assert entries.split_exec(" ".join(quote(argument) for argument in arguments)) == arguments


@given(st.text(max_size=60))
def test_split_exec_any_text_is_a_vector_or_an_error(text: str) -> None:
    try:
        arguments = entries.expand(entries.split_exec(text), {"Name": "n", "Icon": "i"}, "/p.desktop")
    except EntryError:
        return
    assert arguments[0]
    assert not any("\0" in argument for argument in arguments)


def test_expand_field_codes_of_a_start_without_files() -> None:
    values = {"Name": "My App", "Icon": "app"}
    arguments = ["app", "%U", "%i", "--name=%c", "%k", "100%%", "--file=%f", ""]
    expected = ["app", "--icon", "app", "--name=My App", "/p", "100%", "--file=", ""]
    assert entries.expand(arguments, values, "/p") == expected


@pytest.mark.parametrize("value", ["", "  ", '""', '"a', "a\\q", "%f", "%z", "a %", "a\0b"])
def test_exec_that_names_no_program_refused(value: str) -> None:
    with pytest.raises(EntryError):
        entries.expand(entries.split_exec(value), {}, "/p")


def test_shell_text_stays_text() -> None:
    """MC-17."""
    assert entries.split_exec("sh -c $(id);`id`") == ["sh", "-c", "$(id);`id`"]


@pytest.mark.parametrize(
    ("values", "hidden"),
    [
        ({}, False),
        ({"NoDisplay": "true"}, True),
        ({"NoDisplay": "false"}, False),
        ({"Categories": "Screensaver;"}, True),
        ({"Categories": "X;Screensaver;Y"}, True),
        ({"Categories": "ScreensaverSettings;"}, False),
    ],
)
def test_hidden_entries(values: dict[str, str], hidden: bool) -> None:
    assert entries.is_hidden(values) == hidden


def test_data_folders_defaults_and_only_absolute_ones() -> None:
    assert entries.data_folders({}, "/h") == ["/h/.local/share", "/usr/local/share", "/usr/share"]
    assert entries.data_folders({"XDG_DATA_HOME": "/d/", "XDG_DATA_DIRS": "x::/e/"}, "/h") == ["/d", "/e"]


def test_find_joined_names_first_folder_wins_links_to_folders_not_entered(tmp_path: Path) -> None:
    for place in ("1/applications/kde/a.desktop", "2/applications/kde-a.desktop", "2/applications/b.desktop"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("[Desktop Entry]\n")
    (tmp_path / "1/applications/kde/loop").symlink_to("..")
    folders = [str(tmp_path / "0"), str(tmp_path / "1"), str(tmp_path / "2")]
    assert entries.find(folders, "kde-a.desktop") == str(tmp_path / "1/applications/kde/a.desktop")
    assert entries.find(folders, "b.desktop") == str(tmp_path / "2/applications/b.desktop")
    assert entries.find(folders, "../b.desktop") is None
    assert [name for name, _ in entries.find_files(str(tmp_path / "1/applications"))] == ["kde-a.desktop"]


def test_read_file_too_long_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.desktop"
    path.write_bytes(b"[Desktop Entry]\nName=" + b"x" * entries.MAX_ENTRY)
    with pytest.raises(EntryError):
        entries.read_file(str(path))


def test_find_files_stops_at_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MAX_ENTRIES", 3)
    monkeypatch.setattr(entries, "MAX_DEPTH", 2)
    for number in range(5):
        (tmp_path / f"{number}.desktop").touch()
    assert len(list(entries.find_files(str(tmp_path)))) == 3
    for folder in ("d/1/2", "d/1/2/3"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.desktop").touch()
    assert [name for name, _ in entries.find_files(str(tmp_path / "d"))] == ["1-2-x.desktop"]
