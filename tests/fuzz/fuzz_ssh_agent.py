"""Invariant: any bytes are requests that are refused, or understood and encoded anew to what they were; else
RemoteProtocolError. No answer of an agent gives a key that is not allowed."""

from __future__ import annotations

import struct

import harness

from insula_agent.split_ssh.filter import Filter, ListKeys, Refuse, Sign, fingerprint
from insula_proto import ssh_agent
from insula_proto.errors import RemoteProtocolError
from insula_proto.ssh_agent import Identity, Message, MessageDecoder, SignRequest

ALLOWED = b"allowed key"
SEEDS = [
    ssh_agent.encode(Message(ssh_agent.REQUEST_IDENTITIES)),
    ssh_agent.encode_sign_request(SignRequest(ALLOWED, b"SSHSIG\0\0\0\4file", 0)),
    ssh_agent.encode_sign_request(SignRequest(b"other key", b"data", ssh_agent.RSA_SHA2_512)),
    ssh_agent.encode_identities([Identity(ALLOWED, b"mine"), Identity(b"other key", b"not mine")]),
    ssh_agent.encode_signature(b"signature"),
    ssh_agent.encode(Message(17, b"key to add")),
    struct.pack(">I", 0),
]


def fuzz_one(data: bytes) -> None:
    decoder = MessageDecoder()
    gate = Filter(frozenset({fingerprint(ALLOWED)}))
    try:
        for piece in harness.pieces(data):
            for message in decoder.receive(piece):
                _check_request(gate, message)
                _check_answer(gate, message)
    except RemoteProtocolError:
        return


def _check_request(gate: Filter, message: Message) -> None:
    try:
        decision = gate.decide(message)
    except RemoteProtocolError:
        return
    if isinstance(decision, Refuse):
        return
    if isinstance(decision, Sign):
        assert decision.request.key == ALLOWED
        assert decision.description.isprintable()
    assert gate.question(decision) == ssh_agent.encode(message)


def _check_answer(gate: Filter, message: Message) -> None:
    try:
        answer = gate.answer(ListKeys(), message)
    except RemoteProtocolError:
        return
    (shown,) = MessageDecoder().receive(answer)
    if shown.kind == ssh_agent.IDENTITIES_ANSWER:
        assert {each.key for each in ssh_agent.parse_identities(shown.body)} <= {ALLOWED}
    else:
        assert shown.kind == ssh_agent.FAILURE


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
