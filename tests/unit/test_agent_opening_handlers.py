"""Kinds of files and which application opens them: the freedesktop rules, over folders of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula_agent.desktop.entries import EntryError
from insula_agent.opening import handlers, kinds
from insula_agent.opening.handlers import NoHandler

GLOBS = """\
# a comment
50:text/x-c:*.c:cs
50:text/x-c++:*.C:cs
50:application/gzip:*.gz
60:a/tgz:*.tar.gz
50:application/x-tar-gz:*.tar.gz
50:text/x-makefile:makefile
broken
x:y:z
50:a/b:*.[ab]
""".splitlines()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.c", "text/x-c"), ("a.C", "text/x-c++"), ("a.GZ", "application/gzip"), ("a.tar.gz", "a/tgz"),
     ("makefile", "text/x-makefile"), ("a.pdf", "application/pdf"), ("a.unknown", None), ("pdf", None)],
)  # fmt: skip
def test_kind_by_name(name: str, expected: str | None) -> None:
    assert kinds.by_name(name, GLOBS) == expected


def test_kind_by_content() -> None:
    assert kinds.by_content(b"") == kinds.TEXT
    assert kinds.by_content("ä".encode()[:1]) == kinds.TEXT
    assert kinds.by_content(b"a\0b") == kinds.BYTES
    assert kinds.by_content(b"\xff\xfe\xfd\xfc\xfb") == kinds.BYTES


def test_kind_with_what_it_is_a_kind_of() -> None:
    lines = ["text/x-c text/plain", "a/x a/y", "a/y a/x", "a/y a/z", "broken"]
    assert kinds.with_parents("text/x-c", lines) == ["text/x-c", "text/plain"]
    assert kinds.with_parents("text/odd", []) == ["text/odd", "text/plain"]
    assert kinds.with_parents("a/x", lines) == ["a/x", "a/y", "a/z"]


class Home:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.applications = folder / "share" / "applications"
        self.applications.mkdir(parents=True)
        (folder / "config").mkdir()
        self.environment = {
            "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "XDG_CONFIG_DIRS": "/nonexistent",
            "XDG_DATA_HOME": str(folder / "share"), "XDG_DATA_DIRS": "/nonexistent",
        }  # fmt: skip

    def application(self, name: str, kind: str, execute: str = "prog-{} %f") -> None:
        text = f"[Desktop Entry]\nType=Application\nExec={execute.format(name)}\nMimeType={kind};\n"
        (self.applications / f"{name}.desktop").write_text(text)

    def find(self, *wanted: str) -> str:
        return handlers.find(wanted, "/tmp/f", self.environment)[0]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_persons_choice_before_the_systems_before_any(home: Home) -> None:
    for name in ("any", "system", "mine"):
        home.application(name, "a/b")
    assert home.find("a/b") == "prog-any"
    (home.applications / "mimeapps.list").write_text("[Default Applications]\na/b=gone.desktop;system.desktop;\n")
    assert home.find("a/b") == "prog-system"
    (home.folder / "config" / "mimeapps.list").write_text("[Default Applications]\na/b=mine.desktop\n")
    assert home.find("a/b") == "prog-mine"


def test_cache_is_used_and_removed_associations_are_not(home: Home) -> None:
    home.application("first", "x/y")
    home.application("second", "x/y")
    (home.applications / "mimeinfo.cache").write_text("[MIME Cache]\na/b=first.desktop;second.desktop;\n")
    assert home.find("a/b") == "prog-first"
    (home.folder / "config" / "mimeapps.list").write_text("[Removed Associations]\na/b=first.desktop;\n")
    assert home.find("a/b") == "prog-second"


def test_nearest_kind_wins_then_its_parents(home: Home) -> None:
    home.application("editor", "text/plain")
    assert home.find("text/x-c", "text/plain") == "prog-editor"
    home.application("ide", "text/x-c")
    assert home.find("text/x-c", "text/plain") == "prog-ide"


def test_nothing_opens_it(home: Home) -> None:
    home.application("broken", "a/b", execute='"unclosed')
    with pytest.raises(NoHandler):
        home.find("a/b")


def test_what_was_sent_here_is_not_passed_on(home: Home) -> None:
    """MC-23: also where that is what the person's own files and links are opened with."""
    home.application("other", "a/b", execute="/usr/bin/qvm-open-in-dvm %u")
    (home.folder / "config" / "mimeapps.list").write_text("[Default Applications]\na/b=other.desktop\n")
    with pytest.raises(NoHandler):
        home.find("a/b")
    home.application("real", "a/b")
    (home.applications / "mimeinfo.cache").write_text("[MIME Cache]\na/b=other.desktop;real.desktop;\n")
    assert home.find("a/b") == "prog-real"


@pytest.mark.parametrize(
    ("execute", "expected"),
    [
        ("prog %f", ["prog", "/tmp/a%41 b"]), ("prog --x=%u", ["prog", "--x=/tmp/a%41 b"]),
        ("prog", ["prog", "/tmp/a%41 b"]), ("prog %U end", ["prog", "/tmp/a%41 b", "end"]),
        ("prog 100%%", ["prog", "100%", "/tmp/a%41 b"]), ("prog %c %F", ["prog", "Name", "/tmp/a%41 b"]),
    ],
)  # fmt: skip
def test_command_has_the_file_as_one_word(execute: str, expected: list[str]) -> None:
    """MC-17."""
    assert handlers.command({"Exec": execute, "Name": "Name"}, "/e.desktop", "/tmp/a%41 b") == expected


def test_command_in_a_terminal() -> None:
    assert handlers.command({"Exec": "vi %f", "Terminal": "true"}, "", "/f") == [
        "x-terminal-emulator",
        "-e",
        "vi",
        "/f",
    ]


@pytest.mark.parametrize("values", [{"Type": "Link", "Exec": "a"}, {"Hidden": "true", "Exec": "a"}, {}])
def test_command_of_what_is_no_application_refused(values: dict[str, str]) -> None:
    with pytest.raises(EntryError):
        handlers.command(values, "", "/f")
