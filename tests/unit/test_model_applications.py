"""Applications that a guest lists: what it says is bounded, cleaned, and goes back to it as an argument only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.model import applications
from insula.model.applications import Application, is_application_id, parse_applications
from insula.model.errors import ProtocolError
from insula_agent.desktop.menus import listing

FULL = b"""\
a.desktop:Type=Application
a.desktop:Name=Editor
a.desktop:Name[de]=Textbearbeitung
a.desktop:GenericName=Text editor
a.desktop:Comment=Edit text
a.desktop:Categories=Utility;TextEditor;
a.desktop:Icon=accessories-text-editor
a.desktop:Exec=qubes-desktop-run a.desktop

"""


def test_entry_is_read_as_the_agent_writes_it() -> None:
    items = [("Type", "Application"), ("Name", "Editor"), ("Exec", "editor %f"), ("Icon", "text")]
    assert parse_applications(listing("a.desktop", items).encode()) == (Application("a", "Editor", icon="text"),)
    assert parse_applications(FULL) == (
        Application("a", "Editor", "Text editor", "Edit text", ("Utility", "TextEditor"), "accessories-text-editor"),
    )


@pytest.mark.parametrize(
    "line",
    [
        b"a.desktop:Type=Link",
        b"a.desktop:Name=\xe2\x80\xae",
        b"../a.desktop:Name=x",
        b"-a.desktop:Name=x",
        b"a b.desktop:Name=x",
        b"a:Name=x",
        b"a.desktop",
        b"a.desktop:Name",
    ],
)
def test_what_no_menu_could_show_is_left_out(line: bytes) -> None:
    whole = line + b"\na.desktop:Exec=x\n"
    assert parse_applications(whole) == ()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"a\tb\x1b[2Jc\x00", "ab[2Jc"),
        ("evil\u202egnp.exe".encode(), "evilgnp.exe"),
        ("Z" + "\u0335" * 50, "Z"),
        ("Caf\u00e9 \u00a0 \u2028 \u65e5\u672c".encode(), "Caf\u00e9 \u65e5\u672c"),
        (b"x" * 5000, "x" * 200),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
def test_name_is_one_printable_line(said: bytes | str, shown: str) -> None:
    """MC-39."""
    said = said.encode() if isinstance(said, str) else said
    [found] = parse_applications(b"a.desktop:Name=" + said + b"\na.desktop:Exec=x\n")
    assert found.name == shown


@pytest.mark.parametrize("icon", [b"/etc/passwd", b"../x", b"file:x", b"a b", b"x" * 200])
def test_icon_is_a_name_and_no_path(icon: bytes) -> None:
    [found] = parse_applications(b"a.desktop:Name=x\na.desktop:Exec=x\na.desktop:Icon=" + icon)
    assert found.icon == ""


def test_list_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """MC-06, MC-11."""
    monkeypatch.setattr(applications, "MAX_APPLICATIONS", 10)
    lines = [b"a%d.desktop:Name=x\n" % number for number in range(11)]
    assert len(parse_applications(b"".join(lines[:10]))) == 0
    with pytest.raises(ProtocolError, match="at most 10"):
        parse_applications(b"".join(lines))
    with pytest.raises(ProtocolError, match="bytes"):
        parse_applications(bytes(applications.MAX_LIST + 1))
    with pytest.raises(ProtocolError, match="lines"):
        parse_applications(b"\n" * applications.MAX_LINES)


LINE = st.tuples(
    st.sampled_from([b"a.desktop", b"b-c.desktop", b"../x.desktop", b""]),
    st.sampled_from([b"Name", b"Exec", b"Icon", b"Type", b"Categories", b"Name[de]", b""]),
    st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))),
).map(lambda parts: parts[0] + b":" + parts[1] + b"=" + parts[2])


@given(st.one_of(st.binary(), st.lists(LINE).map(b"\n".join)))
def test_any_bytes_are_clean_entries_or_refused(untrusted: bytes) -> None:
    try:
        found = parse_applications(untrusted)
    except ProtocolError:
        return
    assert [entry.id for entry in found] == sorted({entry.id for entry in found})
    for entry in found:
        assert is_application_id(entry.id)
        assert entry.name
        for text in (entry.name, entry.generic_name, entry.comment):
            assert text.isprintable()
            assert len(text) <= applications.MAX_TEXT
        assert "/" not in entry.icon
