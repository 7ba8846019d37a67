"""Invariant: whatever comes on policy's sockets or as policy's answer is a question, an answer, a denial, or raises
RemoteProtocolError; a question's texts are ASCII without NUL or line end, and an answer that allows has all its parts.
"""

from __future__ import annotations

import harness

from insula.qrexec.policy_protocol import QuestionDecoder, decode_answer, decode_eval
from insula_proto.errors import RemoteProtocolError

SEEDS = [
    b"\0source=work\nrequested_source=\nintended_target=vault\nservice_and_arg=a.B+c\n\n",
    b"\0source=work\nintended_target=vault\nservice_and_arg=a.B\njust_evaluate=yes\nassume_yes_for_ask=no\n\n",
    b"\1result=allow\nuser=DEFAULT\ntarget=vault\nautostart=True\nrequested_target=@default\ntarget_uuid=uuid:1\n",
    b"\1result=deny\n",
    b"\2policy.EvalSimple+a.B+c gui keyword adminvm\0work\0vault",
]


def fuzz_one(data: bytes) -> None:
    kind, rest = (data[0] % 3, data[1:]) if data else (0, b"")
    try:
        if kind == 0:
            _question(rest)
        elif kind == 1:
            answer = decode_answer(rest)
            assert answer is None or isinstance(answer.user + answer.target + answer.requested_target, str)
        else:
            question, caller = decode_eval(rest, "policy.EvalSimple")
            assert question.just_evaluate
            assert caller
            assert question.source.isascii()
    except RemoteProtocolError:
        pass


def _question(data: bytes) -> None:
    decoder = QuestionDecoder()
    question = None
    for piece in harness.pieces(data):
        question = decoder.receive(piece)
        if question is not None:
            break
    question = question or decoder.finish()
    text = question.source + question.target + question.service + (question.requested_source or "")
    assert text.isascii()
    assert not {"\0", "\n"} & set(text)


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
