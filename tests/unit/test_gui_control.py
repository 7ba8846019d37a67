from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.gui import control
from insula.gui.control import (
    Configure,
    CopyFailed,
    CopyOffered,
    CopyStarted,
    Deliver,
    Ending,
    Expect,
    Focused,
    FromGui,
    PasteAsked,
    Told,
)
from insula.gui.settings import ALT, CONTROL, SHIFT, SUPER, Sequence, Settings
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)
NUMBER = st.integers(1, 2**53)
STAMP = st.integers(0, 0xFFFFFFFF)
FROM_GUI: st.SearchStrategy[FromGui] = st.one_of(
    st.just(Focused()),
    st.builds(CopyStarted, NUMBER, STAMP),
    st.builds(CopyOffered, NUMBER),
    st.builds(CopyFailed, NUMBER, TEXT),
    st.builds(PasteAsked, NUMBER, STAMP),
    st.builds(Told, TEXT),
    st.builds(Ending, TEXT),
)


@given(FROM_GUI)
def test_from_gui_encoded_comes_back(message: FromGui) -> None:
    assert control.decode_from_gui(control.encode(message)) == message


@pytest.mark.parametrize("message", [Configure("work", 0x3465A4), Deliver(7), Expect()])
def test_to_gui_encoded_comes_back(message: control.ToGui) -> None:
    assert control.decode_to_gui(control.encode(message)) == message


@given(st.binary(max_size=300))
def test_from_gui_any_bytes_raise_only_remote_error(data: bytes) -> None:
    try:
        control.decode_from_gui(data)
    except RemoteProtocolError:
        return


@given(FROM_GUI, st.data())
def test_from_gui_mutated_bytes_raise_only_remote_error(message: FromGui, data: st.DataObject) -> None:
    wire = bytearray(control.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        control.decode_from_gui(bytes(wire))
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "message",
    [
        {"type": "Told", "text": "x" * 401},
        {"type": "Told", "text": "two\nlines"},
        {"type": "Told", "text": "\u202eabc"},
        {"type": "CopyStarted", "number": 0, "stamp": 1},
        {"type": "CopyStarted", "number": 1, "stamp": 2**32},
        {"type": "CopyOffered", "number": 1, "data": b"bytes"},
        {"type": "Configure", "qube": "dom0", "colour": 1},
        {"type": "Deliver", "number": 1},
    ],
)
def test_from_gui_field_out_of_bounds_or_unknown_refused(message: dict[str, object]) -> None:
    """MC-109: among them, bytes of a clipboard in a message."""
    with pytest.raises(RemoteProtocolError):
        control.decode_from_gui(msgspec.msgpack.encode(message))


@pytest.mark.parametrize("message", [Told("two\nlines"), Told("x" * 401), Ending("\x1b[2J")])
def test_encode_text_that_is_not_printable_raises(message: FromGui) -> None:
    with pytest.raises((LocalProtocolError, RemoteProtocolError)):
        control.decode_from_gui(control.encode(message))


@given(st.text(max_size=300))
def test_printable_any_text_can_be_told(text: str) -> None:
    assert control.decode_from_gui(control.encode(Told(control.printable(text)))) == Told(control.printable(text))


def test_configure_says_all_that_settings_hold() -> None:
    """A setting that could not be told would stay at its default in silence."""
    odd = Configure("work", 1, True, False, True, 256, 2, "Mod4-Alt-C", "none", "de+neo+", image_limit=100)
    settings = odd.settings()
    assert settings == Settings(
        "work",
        1,
        allows_fullscreen=True,
        allows_popups=False,
        allows_utf8=True,
        clipboard_limit=256,
        image_limit=100,
        background=2,
        copy=Sequence(SUPER | ALT, "c"),
        paste=None,
        keyboard="de+neo+",
    )
    with pytest.raises(RemoteProtocolError):
        control.decode_to_gui(
            msgspec.msgpack.encode({"type": "Configure", "qube": "w", "colour": 1, "clipboard_limit": 1})
        )


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("Ctrl-Shift-c", Sequence(CONTROL | SHIFT, "c")),
        ("shift-ctrl-C", Sequence(CONTROL | SHIFT, "c")),
        ("Mod4-v", Sequence(SUPER, "v")),
        ("Super-Alt-7", Sequence(SUPER | ALT, "7")),
        ("None", None),
    ],
)
def test_sequence_is_read_as_people_write_it(text: str, keys: Sequence | None) -> None:
    assert Sequence.parse(text) == keys


@pytest.mark.parametrize(
    "text", ["", "c", "Shift-c", "Ctrl-", "Ctrl-Insert", "Hyper-c", "Ctrl--", "-c", "Ctrl-\u00e4", "Ctrl-" * 20 + "c"]
)
def test_sequence_that_is_none_or_that_people_type_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"keys|text"):
        Sequence.parse(text)


@given(st.text(max_size=60))
def test_sequence_any_text_is_one_or_refused(text: str) -> None:
    try:
        keys = Sequence.parse(text)
    except ValueError:
        return
    assert keys is None or keys.modifiers & ~SHIFT
