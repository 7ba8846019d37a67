"""Questions about policy and answers to them on the wire, both ends (reference: qrexec, §7). Sans I/O.

``policy.sock``: lines ``KEY=VALUE``, an empty one; answered with lines, then the end. ``policy.EvalSimple`` and
``policy.EvalGUI``: services that qubes call, so every byte behind the head is a qube's.
"""

from __future__ import annotations

from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import NAME_ALPHABET
from insula_proto.value import Value

MAX_ANSWER = 4096
"""Bytes, as published."""
MAX_LINES = 64
MAX_QUESTION = limits.QREXEC_MAX_SERVICE + 1024
"""Bytes: the longest service, three names, and words around them."""
MAX_EVAL_HEAD = limits.QREXEC_MAX_SERVICE + 256
MAX_EVAL_BODY = 96
MAX_EVAL_SOURCE = 31
MAX_EVAL_TARGET = 63
"""Of ``policy.EvalSimple`` and ``policy.EvalGUI``, as published."""

_REQUIRED = ("source", "intended_target", "service_and_arg")
_FLAGS = frozenset({"just_evaluate", "assume_yes_for_ask"})
_QUESTION_KEYS = frozenset({*_REQUIRED, *_FLAGS, "requested_source"})
_EVAL_ALPHABET = NAME_ALPHABET - frozenset(b":")
_ONCE = ("user", "target", "requested_target", "autostart")
"""What an allowing answer must have, and a denying one must not."""
_KNOWN = frozenset({"result", *_ONCE, "target_uuid", "service", "policy_source"})
_BOOLEANS = {"True": True, "False": False}


class Question(Value):
    """May ``source`` call ``service`` of ``target``?

    ``requested_source`` is None where the protocol's version has none. With ``just_evaluate`` nobody is asked, and
    ``assume_yes`` says whether a question that would have been asked counts as answered.
    """

    __slots__ = ("assume_yes", "just_evaluate", "requested_source", "service", "source", "target")
    source: str
    target: str
    service: str
    """With its argument, if it has one."""
    requested_source: str | None
    just_evaluate: bool
    assume_yes: bool

    def __init__(
        self,
        source: str,
        target: str,
        service: str,
        requested_source: str | None = None,
        *,
        just_evaluate: bool = False,
        assume_yes: bool = False,
    ) -> None:
        self._fill(
            source=source,
            target=target,
            service=service,
            requested_source=requested_source,
            just_evaluate=just_evaluate,
            assume_yes=assume_yes,
        )


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
    lines |= {"just_evaluate": "yes"} if question.just_evaluate else {}
    lines |= {"assume_yes_for_ask": "yes"} if question.assume_yes else {}
    given = [f"{key}={value}" for key, value in lines.items() if value is not None]
    text = "\n".join([*given, "", ""])
    if text.count("\n") != len(given) + 1 or not text.isascii():
        raise LocalProtocolError(f"not a question: {question}")
    return text.encode("ascii")


class QuestionDecoder:
    """Reads one question, in any split: lines up to an empty one, or the end of the stream."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._fields: dict[str, str] = {}
        self._size = 0
        self._is_complete = False

    def receive(self, untrusted_data: bytes) -> Question | None:
        """Return the question once it is complete; what is behind it is not looked at.

        :raise RemoteProtocolError: it is none.
        """
        if self._is_complete:
            raise LocalProtocolError("the question was complete")
        self._size += len(untrusted_data)
        if self._size > MAX_QUESTION:
            raise RemoteProtocolError(f"a question has at most {MAX_QUESTION} bytes")
        self._partial += untrusted_data
        if b"\n" not in untrusted_data:
            return None
        *untrusted_lines, self._partial = self._partial.split(b"\n")
        for untrusted_line in map(bytes, untrusted_lines):
            if not untrusted_line:
                return self._complete()
            self._take(untrusted_line)
        return None

    def finish(self) -> Question:
        """The stream has ended. :raise RemoteProtocolError:"""
        if self._partial:
            self._take(bytes(self._partial))
        return self._complete()

    def _take(self, untrusted_line: bytes) -> None:
        untrusted_key, equals, untrusted_value = untrusted_line.partition(b"=")
        key = untrusted_key.decode("ascii", "replace")
        if not equals or key not in _QUESTION_KEYS or key in self._fields or not untrusted_value.isascii():
            raise RemoteProtocolError(f"not a line of a question: {untrusted_line[:64]!a}")
        if b"\0" in untrusted_value or (key in _FLAGS and untrusted_value not in (b"yes", b"no")):
            raise RemoteProtocolError(f"not a value of {key}: {untrusted_value[:64]!a}")
        self._fields[key] = untrusted_value.decode("ascii")

    def _complete(self) -> Question:
        self._is_complete = True
        missing = [key for key in _REQUIRED if key not in self._fields]
        if missing:
            raise RemoteProtocolError(f"a question without {', '.join(missing)}")
        source, target, service = (self._fields[key] for key in _REQUIRED)
        return Question(
            source,
            target,
            service,
            self._fields.get("requested_source"),
            just_evaluate=self._fields.get("just_evaluate") == "yes",
            assume_yes=self._fields.get("assume_yes_for_ask") == "yes",
        )


def decode_eval(untrusted_data: bytes, service_name: str) -> tuple[Question, str]:
    """What a qube asks over ``policy.EvalSimple`` or ``policy.EvalGUI``, and the qube's name.

    :param untrusted_data: all that came: what a socket service is told of its caller, NUL, and the qube's own bytes.
    :raise RemoteProtocolError: nothing is answered.
    """
    untrusted_head, nul, untrusted_body = untrusted_data.partition(b"\0")
    call, _, rest = untrusted_head.decode("ascii", "replace").partition(" ")
    name, _, service = call.partition("+")
    caller = rest.partition(" ")[0]
    if not nul or name != service_name or not caller:
        raise RemoteProtocolError(f"not a call of {service_name}")
    if not service or service.startswith("+") or len(untrusted_head) > MAX_EVAL_HEAD:
        raise RemoteProtocolError(f"{caller} asks {service_name} about no service")
    untrusted_source, nul, untrusted_target = untrusted_body.partition(b"\0")
    if len(untrusted_body) > MAX_EVAL_BODY or not nul:
        raise RemoteProtocolError(f"{caller} sent {service_name} no two names")
    for untrusted_name, limit in ((untrusted_source, MAX_EVAL_SOURCE), (untrusted_target, MAX_EVAL_TARGET)):
        if not 0 < len(untrusted_name) <= limit or not _EVAL_ALPHABET.issuperset(untrusted_name):
            raise RemoteProtocolError(f"{caller} sent {service_name} a name that is none")
    source, target = untrusted_source.decode("ascii"), untrusted_target.decode("ascii")
    return Question(source, target, service, just_evaluate=True, assume_yes=True), caller


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
