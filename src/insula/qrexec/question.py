"""Asking policy, as a qube's daemon does: the policy daemon first; if it is not there, or what it says is no answer,
the policy program is run, and what that says counts. Everything that is no clear answer is a refusal (qrexec, §7).
"""

from __future__ import annotations

import os
import select
import signal
import socket

from insula.qrexec.log import say
from insula.qrexec.places import policy_socket
from insula.qrexec.policy_protocol import MAX_ANSWER, Answer, Question, decode_answer, encode_question
from insula_proto.errors import LocalProtocolError, RemoteProtocolError


class CallerGone(Exception):
    """Nobody is there to be told of an answer."""


def ask(question: Question, program: str, caller: socket.socket) -> Answer | None:
    """Ask; None: refused. ``caller`` is closed by whoever we ask for when the answer is of no use any more (MC-24)."""
    try:
        return _ask_first(question, program, caller)
    except CallerGone:
        say("the qube's agent is gone, its request is taken back")
        return None


def _ask_first(question: Question, program: str, caller: socket.socket) -> Answer | None:
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
    """Everything up to the end; one byte too many is enough. :raise CallerGone: :raise OSError:"""
    untrusted_data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(caller.fileno(), select.POLLRDHUP)
    while len(untrusted_data) <= MAX_ANSWER:
        ready = dict(poll.poll())
        if caller.fileno() in ready:
            raise CallerGone
        part = os.read(descriptor, MAX_ANSWER)
        if not part:
            break
        untrusted_data += part
    return untrusted_data
