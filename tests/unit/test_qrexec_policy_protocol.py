from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.qrexec.policy_protocol import (
    MAX_ANSWER,
    MAX_QUESTION,
    Answer,
    Question,
    QuestionDecoder,
    decode_answer,
    decode_eval,
    encode_question,
)
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

NAMES = st.text("abcXYZ019_.@:-", max_size=40)
QUESTIONS = st.builds(
    Question,
    NAMES,
    NAMES,
    st.text("abc.+-_", max_size=60),
    st.none() | NAMES,
    just_evaluate=st.booleans(),
    assume_yes=st.booleans(),
)
ALLOW = b"result=allow\nuser=DEFAULT\ntarget=vault\nautostart=True\nrequested_target=@default"


def decoded(data: bytes, size: int = 1000) -> Question:
    decoder = QuestionDecoder()
    for start in range(0, len(data), size):
        question = decoder.receive(data[start : start + size])
        if question is not None:
            return question
    return decoder.finish()


@given(QUESTIONS, st.integers(1, 50))
def test_question_any_split_round_trip(question: Question, size: int) -> None:
    encoded = encode_question(question)
    assert decoded(encoded, size) == question
    assert decoded(encoded[:-1], size) == question, "the end of the stream is as good as an empty line"
    assert decoded(encoded + b"more\xff\0", size) == question


@pytest.mark.parametrize("text", ["a\nb", "ä", "a\n\n"])
def test_question_with_a_line_end_or_not_ascii_is_not_sent(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_question(Question("a", text, "s"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"source=a\nintended_target=b\n\n",
        b"source=a\nsource=a\nintended_target=b\nservice_and_arg=c\n\n",
        b"domain_id=1\nsource=a\nintended_target=b\nservice_and_arg=c\n\n",
        b"process_ident=1\nsource=a\nintended_target=b\nservice_and_arg=c\n\n",
        b"source=a\nintended_target=b\nservice_and_arg=c\njust_evaluate=true\n\n",
        b"source=a\nintended_target=b\nservice_and_arg=c\nassume_yes_for_ask=\n\n",
        b"source=a\nintended_target=b\nservice_and_arg=c\nwhat\n\n",
        b"source=\xc3\xa4\nintended_target=b\nservice_and_arg=c\n\n",
        b"source=a\0\nintended_target=b\nservice_and_arg=c\n\n",
        b"source=" + b"a" * MAX_QUESTION,
    ],
)
def test_question_that_is_none_is_refused(data: bytes) -> None:
    """MC-11, MC-12."""
    for size in (1, len(data) or 1):
        with pytest.raises(RemoteProtocolError):
            decoded(data, size)


@given(st.binary(max_size=300), st.integers(1, 300))
def test_any_bytes_are_a_question_or_refused(data: bytes, size: int) -> None:
    try:
        question = decoded(data, size)
    except RemoteProtocolError:
        return
    assert isinstance(question, Question)


def test_answer_allows_with_all_it_says() -> None:
    extra = b"\ntarget_uuid=uuid:1\nservice=relay+x\npolicy_source=remote\nunknown=y\n"
    answer = decode_answer(ALLOW + extra)
    assert isinstance(answer, Answer)
    assert (answer.user, answer.target, answer.requested_target) == ("DEFAULT", "vault", "@default")
    assert (answer.target_uuid, answer.service, answer.policy_source) == ("uuid:1", "relay+x", "remote")
    assert answer.autostart
    plain = decode_answer(ALLOW.replace(b"True", b"False"))
    assert plain is not None
    assert (plain.autostart, plain.target_uuid, plain.service, plain.policy_source) == (False, None, None, None)


@pytest.mark.parametrize("data", [b"result=deny", b"result=deny\n", b"result=deny\nwhy=x\n"])
def test_answer_denies(data: bytes) -> None:
    assert decode_answer(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"result=allow\n",
        b"result=maybe\n",
        b"result=deny\nuser=x\n",
        b"result=deny\ntarget=x\n",
        b"result=deny\nautostart=True\n",
        ALLOW + b"\n\n",
        ALLOW + b"\nresult=allow",
        ALLOW + b"\nuser=x",
        ALLOW + b"\nword",
        ALLOW + b"\0",
        ALLOW.replace(b"True", b"yes"),
        ALLOW.replace(b"target=vault\n", b"", 1),
        ALLOW.replace(b"vault", b"\xff"),
        ALLOW + b"\nx=" + b"a" * MAX_ANSWER,
    ],
)
def test_answer_that_is_no_clear_one_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_answer(data)


@given(st.binary(max_size=200))
def test_any_bytes_after_an_answer_never_allow_more(data: bytes) -> None:
    """What is appended can name another user or target only if the answer is refused."""
    try:
        answer = decode_answer(ALLOW + b"\n" + data)
    except RemoteProtocolError:
        return
    assert answer is not None
    assert (answer.user, answer.target) == ("DEFAULT", "vault")


def test_eval_is_a_question_and_its_caller() -> None:
    question, caller = decode_eval(b"policy.EvalSimple+a.B+c gui keyword adminvm\0work\0@default", "policy.EvalSimple")
    assert question == Question("work", "@default", "a.B+c", just_evaluate=True, assume_yes=True)
    assert caller == "gui"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"unfinished", b"policy.EvalGUI+d c\0a\0b", b"policy.EvalSimple c\0a\0b", b"policy.EvalSimple+ c\0a\0b",
        b"policy.EvalSimple++d c\0a\0b", b"policy.EvalSimple+d\0a\0b", b"policy.EvalSimple+d c",
        b"policy.EvalSimple+d c\0a", b"policy.EvalSimple+d c\0\0b", b"policy.EvalSimple+d c\0a\0",
        b"policy.EvalSimple+d c\0a\0b\0",
        b"policy.EvalSimple+d c\0a\0\n", b"policy.EvalSimple+d c\0uuid:1\0b", b"policy.EvalSimple+d c\0a b\0c",
        b"policy.EvalSimple+d c\0" + b"a" * 32 + b"\0b", b"policy.EvalSimple+d c\0a\0" + b"b" * 64,
        b"policy.EvalSimple+" + b"d" * 65536 + b" c\0a\0b",
    ],
)  # fmt: skip
def test_eval_that_is_none_is_refused(data: bytes) -> None:
    """MC-16."""
    with pytest.raises(RemoteProtocolError):
        decode_eval(data, "policy.EvalSimple")


@given(st.binary(max_size=120))
def test_eval_any_bytes_of_a_qube_are_two_names_or_refused(data: bytes) -> None:
    try:
        question, _ = decode_eval(b"policy.EvalSimple+d c\0" + data, "policy.EvalSimple")
    except RemoteProtocolError:
        return
    assert f"{question.source}\0{question.target}".encode() == data
