"""What another qube may ask an ssh-agent for: which keys there are, and a signature; sans I/O.

One request is answered after another. :class:`Filter` decides what a request becomes: an answer at once, or a question
to the agent whose answer is filtered too. Both are encoded anew from what was understood, so nothing gets through that
was not.
"""

from __future__ import annotations

import hashlib
from binascii import b2a_base64

from insula_proto import ssh_agent
from insula_proto.errors import RemoteProtocolError
from insula_proto.ssh_agent import Identity, Message, SignRequest
from insula_proto.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Decision = Union["Refuse", "ListKeys", "Sign"]


class Refuse(Value):
    """The answer is a failure; the agent is not asked."""

    __slots__ = ("reason",)
    reason: str

    def __init__(self, reason: str) -> None:
        self._fill(reason=reason)


class ListKeys(Value):
    """The agent is asked for its keys."""

    __slots__ = ()


class Sign(Value):
    """The agent is asked to sign, if the person here agrees. ``description``: key and purpose, in words."""

    __slots__ = ("description", "request")
    request: SignRequest
    description: str

    def __init__(self, request: SignRequest, description: str) -> None:
        self._fill(request=request, description=description)


def fingerprint(key: bytes) -> str:
    """As ``ssh-add -l`` shows it."""
    return "SHA256:" + b2a_base64(hashlib.sha256(key).digest(), newline=False).rstrip(b"=").decode("ascii")


class Filter:
    """``allowed``: fingerprints of the keys that take part; None: all the agent has."""

    def __init__(self, allowed: frozenset[str] | None) -> None:
        self._allowed = allowed

    def decide(self, untrusted_request: Message) -> Decision:
        """:raise RemoteProtocolError: a request that is none; its connection is to be closed."""
        if untrusted_request.kind == ssh_agent.REQUEST_IDENTITIES:
            if untrusted_request.body:
                raise RemoteProtocolError("a request for keys with something after it")
            return ListKeys()
        if untrusted_request.kind != ssh_agent.SIGN_REQUEST:
            return Refuse(f"requests of type {untrusted_request.kind} do not cross qubes")
        request = ssh_agent.parse_sign_request(untrusted_request.body)
        if not self._may_use(request.key):
            return Refuse(f"key {fingerprint(request.key)} is not offered to this qube")
        return Sign(request, f"{ssh_agent.describe(request.data)} with the key {fingerprint(request.key)}")

    def question(self, decision: ListKeys | Sign) -> bytes:
        """What the agent is sent."""
        if isinstance(decision, Sign):
            return ssh_agent.encode_sign_request(decision.request)
        return ssh_agent.encode(Message(ssh_agent.REQUEST_IDENTITIES))

    def answer(self, decision: ListKeys | Sign, response: Message) -> bytes:
        """What the caller is sent of the agent's answer. :raise RemoteProtocolError: that is none."""
        if isinstance(decision, ListKeys) and response.kind == ssh_agent.IDENTITIES_ANSWER:
            identities = ssh_agent.parse_identities(response.body)
            return ssh_agent.encode_identities([each for each in identities if self._may_use(each.key)])
        if isinstance(decision, Sign) and response.kind == ssh_agent.SIGN_RESPONSE:
            return ssh_agent.encode_signature(ssh_agent.parse_signature(response.body))
        return ssh_agent.encode_failure()

    def _may_use(self, key: bytes) -> bool:
        return self._allowed is None or fingerprint(key) in self._allowed


__all__ = ["Decision", "Filter", "Identity", "ListKeys", "Refuse", "Sign", "fingerprint"]
