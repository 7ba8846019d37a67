"""Entries of the desktop's menu for the applications of qubes."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from insula.manager import menu
from insula.manager.menu import Entry
from insula.model.applications import parse_applications

BROWSER = Entry("work", 0x3465A4, "org.example.Browser", "Browser", "Looks at pages", ("Network", "WebBrowser"))
INSULA = ["/opt/in sula/insula"]


def values(text: str) -> dict[str, str]:
    """As a desktop reads an entry."""
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(text)
    return {key: re.sub(r"\\(.)", r"\1", value) for key, value in parser["Desktop Entry"].items()}


def words(line: str) -> list[str]:
    return [re.sub(r"\\(.)", r"\1", word).replace("%%", "%") for word in re.findall(r'"((?:[^"\\]|\\.)*)"', line)]


def test_entry_starts_the_application_in_its_qube() -> None:
    entry = values(menu.entry_file(BROWSER, INSULA, Path("/icons/a.svg")))
    assert entry["Name"] == "work: Browser"
    assert words(entry["Exec"]) == [*INSULA, "run", "--gui", "--service", "qubes.StartApp+org.example.Browser", "work"]
    assert entry["Categories"] == "Network;WebBrowser;X-Insula-work;"
    terminal = values(menu.entry_file(Entry("work", 0, "", "Terminal"), INSULA, Path("/icons/a.svg")))
    assert words(terminal["Exec"]) == [*INSULA, "run", "--gui", "work", "x-terminal-emulator"]


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_nothing_a_qube_says_gets_out_of_its_line(name: bytes, comment: bytes) -> None:
    """MC-39, and no other key: what an entry starts is ours."""
    said = b"a.desktop:Exec=x\na.desktop:Name=" + name.replace(b"\n", b"") + b"\na.desktop:Comment=" + comment
    for application in parse_applications(said):
        made = Entry("work", 0, application.id, application.name, application.comment, application.categories)
        entry = values(menu.entry_file(made, INSULA, Path("/i.svg")))
        assert words(entry["Exec"])[1:] == ["run", "--gui", "--service", "qubes.StartApp+a", "work"]
        assert entry["Name"] == f"work: {application.name}"
        ElementTree.fromstring(menu.icon_file(made))


def test_icon_is_in_the_colour_of_the_qube_with_a_letter_that_can_be_read() -> None:
    assert 'fill="#3465a4"' in menu.icon_file(BROWSER)
    assert ">B</text>" in menu.icon_file(BROWSER)
    assert 'fill="#ffffff">' in menu.icon_file(BROWSER)
    assert 'fill="#000000">' in menu.icon_file(Entry("personal", 0xEDD400, "", "Terminal"))


def test_installed_again_has_what_is_there_now_and_leaves_others_alone(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    applications = tmp_path / ".local/share/applications"
    applications.mkdir(parents=True)
    (applications / "other.desktop").write_text("[Desktop Entry]\n")
    menu.install([BROWSER, Entry("old", 0xCC0000, "x", "X")], INSULA, env)
    [path] = menu.install([BROWSER], INSULA, env)
    assert sorted(file.name for file in applications.iterdir()) == [
        "insula-app-work+org.example.Browser.desktop",
        "other.desktop",
    ]
    assert Path(values(path.read_text())["Icon"]).read_text() == menu.icon_file(BROWSER)
    assert menu.remove(env) == [path]
    assert [file.name for file in applications.iterdir()] == ["other.desktop"]
    assert not list((tmp_path / ".local/share/icons/insula").iterdir())


def test_words_find_an_application_by_parts_of_its_and_its_qubes_name() -> None:
    assert BROWSER.matches(["brow", "WORK"])
    assert BROWSER.matches(["example"])
    assert not BROWSER.matches(["brow", "personal"])
