"""Questions and notices to the program that asks the user: round trip, what is refused, which answers count."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.policy import agent
from insula.policy.agent import Notice, Notification, Question, Remark, Resolution
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,30}", fullmatch=True)
TARGETS = NAMES | st.builds("@dispvm:{}".format, NAMES)
SERVICES = st.from_regex(r"[A-Za-z0-9_.-]{1,40}", fullmatch=True)
ARGUMENTS = st.from_regex(r"\+[A-Za-z0-9_.+-]{0,40}", fullmatch=True)
ICONS = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)
NOTICES = st.builds(Notice, st.sampled_from(Resolution), SERVICES, ARGUMENTS, NAMES, TARGETS | st.just(""))
REMARKS = st.builds(Remark, NAMES | st.just(""), st.from_regex(r"[ -~]{1,300}", fullmatch=True))
PRINTABLE = st.text(st.characters().filter(str.isprintable), max_size=40)
NOTIFICATIONS = st.builds(
    Notification,
    NAMES,
    ICONS | st.just(""),
    st.integers(0, agent.MAX_NUMBER),
    st.booleans(),
    PRINTABLE,
    st.lists(PRINTABLE, max_size=agent.MAX_LINES).map("\n".join),
)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    targets = tuple(draw(st.lists(TARGETS, min_size=1, max_size=6, unique=True)))
    default = draw(st.sampled_from(targets) | st.none())
    return Question(
        draw(NAMES), draw(SERVICES), draw(ARGUMENTS), targets, default, draw(st.dictionaries(TARGETS, ICONS))
    )


@given(questions() | NOTICES | REMARKS | NOTIFICATIONS)
def test_request_comes_back_as_it_was(request: agent.Request) -> None:
    assert agent.decode(agent.encode(request)) == request


@given(questions() | NOTICES | REMARKS | NOTIFICATIONS, st.data())
def test_changed_request_is_another_request_or_refused(request: agent.Request, data: st.DataObject) -> None:
    changed = bytearray(agent.encode(request))
    position = data.draw(st.integers(0, len(changed) - 1))
    changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        found = agent.decode(bytes(changed))
    except RemoteProtocolError:
        return
    assert agent.decode(agent.encode(found)) == found


def wire(header: bytes = b"policy.Ask dom0 name dom0", **changed: object) -> bytes:
    body: dict[str, object] = {
        "source": "untrusted",
        "service": "qubes.Filecopy",
        "argument": "+",
        "targets": ["work", "vault"],
        "default_target": "",
        "icons": {"untrusted": "appvm-red"},
    }
    body.update(changed)
    return header + b"\0" + json.dumps({key: value for key, value in body.items() if value is not None}).encode()


def show(**changed: object) -> bytes:
    told = {"source": "work", "icon": "appvm-red", "number": 1, "is_urgent": False, "title": "New", "text": "a\nb"}
    return b"insula.Show dom0 name dom0\0" + json.dumps({**told, **changed}).encode()


def test_notification_of_a_qube_is_read() -> None:
    assert agent.decode(show()) == Notification("work", "appvm-red", 1, False, "New", "a\nb")


@pytest.mark.parametrize(
    "header", [b"policy.Ask dom0 name dom0", b"policy.Ask+ dom0", b"policy.Ask dom0 keyword adminvm"]
)
def test_published_question_is_read(header: bytes) -> None:
    assert agent.decode(wire(header)) == Question(
        "untrusted", "qubes.Filecopy", "+", ("work", "vault"), None, {"untrusted": "appvm-red"}
    )


@pytest.mark.parametrize(
    "untrusted_data",
    [
        b"",
        b"policy.Ask dom0 name dom0",
        wire(b"policy.Ask work name dom0"),
        wire(b"policy.Asked dom0 name dom0"),
        wire(b"policy.Ask dom0 name dom0\n"),
        wire(source=""),
        wire(source="un\u202etrusted"),
        wire(source="untrusted\n"),
        wire(source="x" * 64),
        wire(service="qubes.Filecopy\x1b[2J"),
        wire(service="a b"),
        wire(argument="no-plus"),
        wire(argument="+\u0430"),
        wire(targets=[]),
        wire(targets=["work", "work"]),
        wire(targets=["work\x00"]),
        wire(targets=[f"q{number}" for number in range(agent.MAX_TARGETS + 1)]),
        wire(default_target="elsewhere"),
        wire(icons={"work": "../../etc/passwd"}),
        wire(icons=None),
        wire(title="Everything is fine"),
        wire() + b"{}",
        wire(b"policy.Notify dom0 name dom0"),
        wire(b"insula.Tell dom0 name dom0"),
        b'insula.Tell dom0 name dom0\0{"source": "work", "text": ""}',
        b'insula.Tell dom0 name dom0\0{"source": "work", "text": "two\\nlines"}',
        b'insula.Tell dom0 name dom0\0{"source": "work", "text": "\\u202e"}',
        b'policy.Tell dom0 name dom0\0{"source": "work", "text": "x"}',
        show(source=""),
        show(source="work\u202e"),
        show(title="\u202egnp.exe"),
        show(title="two\nlines"),
        show(text="\x1b[2J"),
        show(text="\n" * agent.MAX_LINES),
        show(text="x" * (agent.MAX_TEXT + 1)),
        show(number=-1),
        show(number=1 << 32),
        show(is_urgent="yes"),
        show(icon="../../etc/passwd"),
        show(actions=["Open"]),
        wire()[:-1],
        b"policy.Ask dom0 name dom0\0" + b"[" * 100_000,
        b"policy.Ask dom0 name dom0\0" + b" " * agent.MAX_REQUEST,
        b"policy.Ask dom0 name dom0\0\xff\xfe",
    ],
)
def test_what_is_no_request_is_refused(untrusted_data: bytes) -> None:
    """MC-39: what would be shown to a person has no character that moves, hides or reorders."""
    with pytest.raises(RemoteProtocolError):
        agent.decode(untrusted_data)


def test_request_that_nobody_would_take_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="offered first"):
        agent.encode(Question("work", "qubes.Gpg", "+", ("vault",), "work"))
    with pytest.raises(LocalProtocolError):
        agent.encode(Notice(Resolution.DENY, "qubes.Gpg", "+", "wörk", ""))


@given(questions())
def test_answer_is_one_of_the_targets_or_no(question: Question) -> None:
    for target in question.targets:
        assert agent.decode_answer(agent.encode_answer(target), question.targets) == target
    assert agent.decode_answer(agent.encode_answer(None), question.targets) is None


@pytest.mark.parametrize(
    "untrusted_data", [b"", b"allow", b"allow:", b"allow:vaul", b"allow:vault\n", b"deny\n", b"allow:dom0", b"\xff"]
)
def test_other_answer_is_refused(untrusted_data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        agent.decode_answer(untrusted_data, ("work", "vault"))
