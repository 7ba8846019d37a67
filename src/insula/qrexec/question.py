"""Asking policy: the daemon's end of ``policy.sock`` and of the policy program (reference: qrexec, §7).

The policy daemon is asked first; if it is not there, or what it says is no answer, the policy program is run, and what
that says counts. Everything that is no clear answer is a refusal.
"""

from __future__ import annotations

import os
import select
import signal
import socket

from insula.qrexec.log import say
from insula.qrexec.places import policy_socket
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.value import Value

MAX_ANSWER = 4096
"""Bytes, as published."""
MAX_LINES = 64

_ONCE = ("user", "target", "requested_target", "autostart")
"""What an allowing answer must have, and a denying one must not."""
_KNOWN = frozenset({"result", *_ONCE, "target_uuid", "service", "policy_source"})
_BOOLEANS = {"True": True, "False": False}


class Question(Value):
    """``requested_source`` is None where the protocol's version has none."""

    __slots__ = ("requested_source", "service", "source", "target")
    source: str
    target: str
    service: str
    requested_source: str | None

    def __init__(self, source: str, target: str, service: str, requested_source: str | None = None) -> None:
        self._fill(source=source, target=target, service=service, requested_source=requested_source)


class Answer(Value):
    """Allowed, and how."""

    __slots__ = ("autostart", "policy_source", "requested_target", "service", "target", "target_uuid", "user")
    user: str
    target: str
    target_uuid: str | None
    requested_target: str
    service: str | None
    policy_source: str | None
    autostart: bool

    def __init__(self, fields: dict[str, str]) -> None:
        self._fill(
            user=fields["user"],
            target=fields["target"],
            target_uuid=fields.get("target_uuid"),
            requested_target=fields["requested_target"],
            service=fields.get("service"),
            policy_source=fields.get("policy_source"),
            autostart=_BOOLEANS[fields["autostart"]],
        )


def encode_question(question: Question) -> bytes:
    """:raise LocalProtocolError: a text with a line end in it, or not ASCII."""
    lines = {"source": question.source, "requested_source": question.requested_source}
    lines |= {"intended_target": question.target, "service_and_arg": question.service}
    given = [f"{key}={value}" for key, value in lines.items() if value is not None]
    text = "\n".join([*given, "", ""])
    if text.count("\n") != len(given) + 1 or not text.isascii():
        raise LocalProtocolError(f"not a question: {question}")
    return text.encode("ascii")


def decode_answer(untrusted_data: bytes) -> Answer | None:
    """The answer; None: denied. :raise RemoteProtocolError: neither."""
    if len(untrusted_data) > MAX_ANSWER:
        raise RemoteProtocolError(f"an answer has at most {MAX_ANSWER} bytes")
    try:
        text = untrusted_data.decode("ascii")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("an answer that is not ASCII") from error
    if "\0" in text:
        raise RemoteProtocolError("an answer with a NUL in it")
    fields: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):
        key, equals, value = line.partition("=")
        if not equals or key in fields or len(fields) > MAX_LINES:
            raise RemoteProtocolError(f"not a line of an answer: {line!a}")
        fields[key] = value
    result = fields.get("result")
    if result == "deny" and not fields.keys() & set(_ONCE):
        return None
    if result != "allow" or not fields.keys() >= set(_ONCE) or fields["autostart"] not in _BOOLEANS:
        raise RemoteProtocolError("an answer that neither allows nor denies")
    return Answer({key: value for key, value in fields.items() if key in _KNOWN})


def ask(question: Question, program: str, caller: socket.socket) -> Answer | None:
    """Ask; None: refused. ``caller`` is closed by whoever we ask for when the answer is of no use any more (MC-24)."""
    try:
        return _ask_daemon(question, caller)
    except (OSError, LocalProtocolError, RemoteProtocolError) as error:
        say(f"policy daemon: {error}; asking {program}")
    try:
        return _ask_program(question, program, caller)
    except (OSError, RemoteProtocolError) as error:
        say(f"{program}: {error}")
        return None


def _ask_daemon(question: Question, caller: socket.socket) -> Answer | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(policy_socket())
        connection.sendall(encode_question(question))
        return decode_answer(_read_all(connection.fileno(), caller))


def _ask_program(question: Question, program: str, caller: socket.socket) -> Answer | None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            arguments = ["qrexec-policy-exec", "--", question.source, question.target, question.service]
            stdio = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), number) for number in (0, 1)]
            pid = os.posix_spawn(program, arguments, os.environ, file_actions=stdio, setsigdef=[signal.SIGPIPE])
        try:
            untrusted_answer = _read_all(ours.fileno(), caller)
        except BaseException:
            os.kill(pid, signal.SIGTERM)
            raise
        finally:
            ours.close()
            _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise RemoteProtocolError(f"it ended with {code}")
    return decode_answer(untrusted_answer)


def _read_all(descriptor: int, caller: socket.socket) -> bytes:
    """Everything up to the end; one byte too many is enough. :raise RemoteProtocolError: the caller went away."""
    untrusted_data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(caller.fileno(), select.POLLRDHUP)
    while len(untrusted_data) <= MAX_ANSWER:
        ready = dict(poll.poll())
        if caller.fileno() in ready:
            raise RemoteProtocolError("the qube's agent is gone")
        part = os.read(descriptor, MAX_ANSWER)
        if not part:
            break
        untrusted_data += part
    return untrusted_data
