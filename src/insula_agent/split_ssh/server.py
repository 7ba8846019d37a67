"""``qubes.SshAgent+KEYSET``: an ssh-agent of this qube, for another one, as far as :mod:`.filter` lets it be used.

One call is one connection to the agent. Who may call at all is for policy; which keys a caller sees, and whether
somebody here is asked before each signature, for the key set's settings (:mod:`.keyset`).
"""

from __future__ import annotations

import os
import socket
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import consent
from insula_agent.split_ssh import keyset
from insula_agent.split_ssh.filter import Filter, Refuse, Sign
from insula_proto import ssh_agent
from insula_proto.errors import RemoteProtocolError
from insula_proto.ssh_agent import Message, MessageDecoder

CHUNK = 65536
AGENT_LIMIT_S = 60
"""Seconds the agent has for an answer; it may ask for a touch of a token."""


class Agent:
    """The connection to the ssh-agent."""

    def __init__(self, path: str) -> None:
        """:raise OSError: nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(AGENT_LIMIT_S)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._decoder = MessageDecoder()

    def ask(self, question: bytes) -> Message:
        """:raise OSError: it went away, or does not answer. :raise RemoteProtocolError:"""
        self._socket.sendall(question)
        while True:
            data = self._socket.recv(CHUNK)
            if not data:
                raise ConnectionResetError("the ssh-agent has closed the connection")
            messages = self._decoder.receive(data)
            if len(messages) > 1 or (messages and not self._decoder.is_between_messages):
                raise RemoteProtocolError("more than one answer of the ssh-agent")
            if messages:
                return messages[0]

    def close(self) -> None:
        self._socket.close()


class Service:
    """Answers requests of one caller, one at a time."""

    def __init__(self, name: str, caller: str, settings: keyset.Settings, agent: Agent) -> None:
        self._name = name
        self._caller = caller
        self._settings = settings
        self._agent = agent
        self._filter = Filter(settings.allowed(caller))

    def handle(self, untrusted_request: Message) -> bytes:
        """The answer. :raise RemoteProtocolError: the request is none. :raise OSError: the agent is gone."""
        decision = self._filter.decide(untrusted_request)
        if isinstance(decision, Refuse):
            sys.stderr.write(f"refused: {decision.reason}\n")
            return ssh_agent.encode_failure()
        if isinstance(decision, Sign) and not self._is_allowed(decision):
            sys.stderr.write("not allowed\n")
            return ssh_agent.encode_failure()
        return self._filter.answer(decision, self._agent.ask(self._filter.question(decision)))

    def _is_allowed(self, decision: Sign) -> bool:
        seconds = self._settings.confirm_s
        if seconds == keyset.NEVER:
            return True
        lasting = f", now and for the next {seconds} seconds" if seconds else ""
        question = f"Do you allow the qube {self._caller} to {decision.description}{lasting}?"
        try:
            return consent.ask_or_remember(f"ssh-{self._name}", self._caller, question, seconds, os.environ)
        except consent.NobodyToAsk as error:
            sys.stderr.write(f"{error}\n")
            return False


def _send(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def serve(argument: str) -> None:
    """:raise KeysetError, ValueError, OSError, RemoteProtocolError:"""
    name = keyset.check_name(argument)
    caller = consent.check_source(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
    settings = keyset.load(name, os.environ)
    if settings.callers is not None and caller not in settings.callers:
        raise keyset.KeysetError(f"the keys {name} are not for the qube {caller}")
    agent = Agent(settings.agent)
    try:
        service = Service(name, caller, settings, agent)
        decoder = MessageDecoder()
        while untrusted_data := os.read(0, CHUNK):
            for request in decoder.receive(untrusted_data):
                _send(service.handle(request))
        if not decoder.is_between_messages:
            raise RemoteProtocolError("the caller ended in the middle of a request")
    finally:
        agent.close()


def main(arguments: list[str]) -> int:
    try:
        serve(arguments[0] if arguments else "")
    except (ValueError, OSError, RemoteProtocolError) as error:
        sys.stderr.write(f"split SSH: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
