"""The qube's notification service: its codec, what it answers, and the program on a real bus with a real client."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula_agent.notifications import service, wire
from insula_agent.notifications.bus import NoBus, socket_address
from insula_agent.notifications.service import EXPIRED, Service
from insula_agent.notifications.wire import Decoder, Message
from insula_proto import notification
from insula_proto.errors import RemoteProtocolError
from insula_proto.notification import Notification

SOURCES = Path(__file__).parents[2] / "src"
SERVER = SOURCES / "insula_agent" / "notifications" / "server.py"
WAIT_S = 120.0
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
NAMES = st.sampled_from(["path", "interface", "member", "error_name", "destination", "sender"])
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 255),
    "n": st.integers(-(1 << 15), (1 << 15) - 1),
    "u": st.integers(0, (1 << 32) - 1),
    "i": st.integers(-(1 << 31), (1 << 31) - 1),
    "x": st.integers(-(1 << 63), (1 << 63) - 1),
    "d": st.floats(allow_nan=False),
    "b": st.booleans(),
    "s": TEXT,
    "ay": st.binary(max_size=20),
    "as": st.lists(TEXT, max_size=3),
    "a{su}": st.dictionaries(TEXT, st.integers(0, 99), max_size=3),
    "(ys(bt))": st.tuples(st.integers(0, 255), TEXT, st.tuples(st.booleans(), st.integers(0, (1 << 64) - 1))),
}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kinds = draw(st.lists(st.sampled_from(sorted(BASIC)), max_size=4))
    fields: dict[str, Any] = draw(st.dictionaries(NAMES, TEXT.filter(bool)))
    if draw(st.booleans()):
        fields["reply_serial"] = draw(BASIC["u"])
    body = [draw(BASIC[kind]) for kind in kinds]
    return Message(draw(st.integers(1, 4)), draw(BASIC["u"]), fields, "".join(kinds), body, draw(st.integers(0, 3)))


@given(st.lists(messages(), max_size=3), st.data())
def test_messages_any_split_gives_the_same(sent: list[Message], data: st.DataObject) -> None:
    rest = b"".join(map(wire.encode, sent))
    decoder, received = Decoder(), []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        received += decoder.receive(rest[:size])
        rest = rest[size:]
    assert received == sent


@given(messages(), st.data())
def test_changed_bytes_only_the_remote_error(message: Message, data: st.DataObject) -> None:
    """MC-11."""
    changed = bytearray(wire.encode(message))
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(RemoteProtocolError):
        Decoder().receive(bytes(changed))


@pytest.mark.parametrize(
    "signature", ["a", "(", "()", "a{s}", "a{sss}", "{", "z", "a" * 40 + "s", "(" * 40 + "s" + ")" * 40]
)
def test_what_is_no_signature_is_refused(signature: str) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.split(signature)


def test_message_that_is_too_long_is_refused_before_it_came() -> None:
    head = bytearray(wire.encode(Message(wire.CALL, 1, {"path": "/", "member": "x"}, "s", ("y",))))
    head[4:8] = (wire.MAX_MESSAGE + 1).to_bytes(4, "little")
    with pytest.raises(RemoteProtocolError):
        Decoder().receive(bytes(head[:16]))


def call(member: str, signature: str = "", body: tuple[Any, ...] = (), **changed: Any) -> Message:
    fields = {"path": service.PATH, "interface": service.INTERFACE, "member": member, "sender": ":1.5"}
    return Message(wire.CALL, 9, {**fields, **changed}, signature, body)


def notify(summary: str = "Done", replaces: int = 0, **hints: Any) -> Message:
    return call(
        "Notify", "susssasa{sv}i", ("mail", replaces, "icon", summary, "<b>4</b> letters", ["a", "A"], hints, -1)
    )


def test_notification_goes_to_the_host_as_text_and_has_a_number_of_its_own() -> None:
    served = Service(7)
    [answer], told = served.take(notify())
    assert (answer.kind, answer.answers, answer.field("destination"), answer.body) == (wire.RETURN, 9, ":1.5", (7,))
    assert told == Notification(7, "normal", b"mail", b"Done", b"<b>4</b> letters")
    [answer], told = served.take(notify("Later", urgency=2))
    assert answer.body == (8,)
    assert told is not None
    assert (told.number, told.urgency) == (8, "critical")


def test_later_one_replaces_an_earlier_one_and_closing_takes_it_away() -> None:
    served = Service(1)
    _, told = served.take(notify("New", replaces=1, urgency="loud"))
    assert told is not None
    assert (told.number, told.urgency, told.untrusted_summary) == (1, "normal", b"New")
    [answer, signal], told = served.take(call("CloseNotification", "u", (1,)))
    assert (answer.kind, signal.kind, signal.body) == (wire.RETURN, wire.SIGNAL, (1, service.CLOSED))
    assert told is not None
    assert told.is_withdrawn


def test_one_without_a_word_is_not_taken_for_a_withdrawal() -> None:
    silent = call("Notify", "susssasa{sv}i", ("", 0, "", "", "", [], {}, -1))
    _, told = Service(1).take(silent)
    assert told is not None
    assert not told.is_withdrawn


def test_programs_learn_that_only_text_is_shown() -> None:
    [answer], told = Service(1).take(call("GetCapabilities"))
    assert (answer.body, told) == ((["body"],), None)
    [answer], _ = Service(1).take(call("GetServerInformation"))
    assert len(answer.body) == 4


def test_unknown_method_and_wrong_arguments_are_errors_and_a_signal_is_passed_over() -> None:
    served = Service(1)
    for message, error in (
        (call("Open"), service.UNKNOWN_METHOD),
        (call("Notify", interface="org.example.Other"), service.UNKNOWN_METHOD),
        (call("Notify", "s", ("x",)), service.INVALID_ARGUMENTS),
    ):
        [answer], told = served.take(message)
        assert (answer.kind, answer.field("error_name"), told) == (wire.ERROR, error, None)
    assert served.take(Message(wire.SIGNAL, 3, {"member": "NameAcquired"}, "s", ("x",))) == ([], None)


def test_numbers_go_round() -> None:
    served = Service(notification.MAX_NUMBER - 1)
    numbers = [served.take(notify())[0][0].body[0] for _ in range(3)]
    assert numbers == [notification.MAX_NUMBER - 1, notification.MAX_NUMBER, 1]


def test_address_of_the_bus() -> None:
    assert socket_address({"DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus,guid=1"}) == "/run/user/1000/bus"
    assert socket_address({"DBUS_SESSION_BUS_ADDRESS": "tcp:host=x;unix:abstract=/tmp/x"}) == "\0/tmp/x"
    for bad in ({}, {"DBUS_SESSION_BUS_ADDRESS": "tcp:host=localhost"}):
        with pytest.raises(NoBus):
            socket_address(bad)


class Session:
    """A bus that starts the service as in a qube, with a client of calls that writes down what it is told."""

    def __init__(self, folder: Path) -> None:
        self._told = folder / "told"
        self._told.mkdir()
        self.address = f"unix:path={folder / 'bus'}"
        client = folder / "client"
        client.write_text(
            f"#!{sys.executable}\nimport os, sys\n"
            f"name = os.path.join({str(self._told)!r}, str(len(os.listdir({str(self._told)!r}))))\n"
            "open(name + '.new', 'wb').write(' '.join(sys.argv[1:]).encode() + b'|' + sys.stdin.buffer.read())\n"
            "os.rename(name + '.new', name)\n"
        )
        client.chmod(0o755)
        services = folder / "services"
        services.mkdir()
        (services / "n.service").write_text(
            f"[D-BUS Service]\nName={service.NAME}\nExec={sys.executable} -I -S {SERVER}\n"
        )
        self._configuration = folder / "session.conf"
        self._configuration.write_text(
            f"<busconfig><type>session</type><listen>{self.address}</listen><auth>EXTERNAL</auth>"
            f"<servicedir>{services}</servicedir><policy context='default'><allow send_destination='*'/>"
            "<allow eavesdrop='false'/><allow own='*'/></policy></busconfig>"
        )
        self._client = client

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._configuration}", "--nofork", "--print-address"],
            env={**os.environ, "QREXEC_CLIENT_PATH": str(self._client)},
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield
        finally:
            process.terminate()
            process.communicate(timeout=WAIT_S)

    def gdbus(self, method: str, *arguments: str) -> str:
        return subprocess.run(
            ["gdbus", "call", "--address", self.address, "--dest", service.NAME, "--object-path", service.PATH,
             "--method", f"{service.INTERFACE}.{method}", *arguments],
            check=True, stdout=subprocess.PIPE, text=True, timeout=WAIT_S,
        ).stdout.strip()  # fmt: skip

    def told(self, count: int) -> list[tuple[str, Notification]]:
        """What the host was told, once it is so much: the words of each call, and the payload."""
        end = time.monotonic() + WAIT_S
        while len(names := [path for path in self._told.iterdir() if not path.suffix]) < count:
            assert time.monotonic() < end, f"{len(names)} calls, not {count}"
            time.sleep(0.02)
        found = []
        for path in sorted(names, key=lambda path: int(path.name)):
            words, _, payload = path.read_bytes().partition(b"|")
            found.append((words.decode(), notification.decode(payload)))
        return found


def test_real_client_on_a_real_bus_starts_the_service_and_the_host_is_told(tmp_path: Path) -> None:
    session = Session(tmp_path)
    with session.running():
        assert "body" in session.gdbus("GetCapabilities")
        text = [
            "mail",
            "0",
            "",
            "Grüße",
            "two\nlines",
            "[]",
            "{'urgency': <byte 2>, 'image-data': <(1, 2, 3)>}",
            "5000",
        ]
        number = int(session.gdbus("Notify", *text).removeprefix("(uint32 ").removesuffix(",)"))
        [(words, told)] = session.told(1)
        assert words == "-- dom0 insula.Notify"
        assert told == Notification(number, "critical", b"mail", "Grüße".encode(), b"two\nlines")
        session.gdbus("CloseNotification", str(number))
        assert session.told(2)[1][1].is_withdrawn


def test_signal_says_that_it_has_gone() -> None:
    message = Service(1).gone(5, EXPIRED)
    assert Decoder().receive(wire.encode(message)) == [message]
