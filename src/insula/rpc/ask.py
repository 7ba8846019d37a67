"""Asking the user, by the program that serves the policy agent's socket (:mod:`insula.policy.agent`), or, where another
qube shows the caller's windows (``guivm``), by the services of that qube.

A question is a connection; who closes it before the answer takes the question back, and the prompt with it (MC-24).
What qubes can cause is bounded: questions open at a time, and how often one of them may ask; beyond that it is refused
without a prompt, and the user told once (MC-33).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from insula.model.names import ADMIN_NAME
from insula.policy import agent
from insula.policy.agent import Notice, Notification, Question, Remark, Resolution
from insula.policy.decisions import Ask, Reason, Request
from insula.policy.snapshot import Snapshot
from insula.policy.tokens import DISPVM_OF
from insula.rpc.pacing import RateLimit
from insula.rpc.sockets import address
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_OPEN_OF_QUBE = 3
MAX_OPEN = 16
QUESTIONS_BURST = 6
QUESTIONS_PER_SECOND = 1 / 20
"""How often one qube may ask: a person who copies file after file is not hindered."""
NOTICES_BURST = 10
NOTICES_PER_SECOND = 1 / 5
MAX_NOTICES = 32
"""Notices on their way to the desktop at a time, of all qubes together."""
SHOWN_BURST = 10
SHOWN_PER_SECOND = 1.0
MAX_SHOWN = 16
"""What programs in qubes tell, apart from notices: none of it keeps one of those from being shown."""
NOTICE_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
ASK, NOTIFY = "policy.Ask", "policy.Notify"
"""Services of a qube that shows the windows of others (published)."""
_UCRED = struct.Struct("iII")

log = logging.getLogger("insula.rpc")


class CannotAsk(Exception):
    """Nobody listens and nobody can be made to. The message says why, and what the user can do."""


class Desk(Protocol):
    """Where the user sits."""

    async def open(self) -> None:
        """Return when somebody listens at the policy agent's socket. :raise CannotAsk:"""


class AskedQube(Protocol):
    """The part of :class:`insula.rpc.launcher.RunningSession` that is used here."""

    async def ask_service(self, service: str, words: bytes, limit: int) -> bytes | None: ...


class Unattended:
    """A :class:`Desk` where nothing is started: whoever asks the user was started by others, or is not there."""

    async def open(self) -> None:
        raise CannotAsk("nobody listens")


class NobodyToAsk(Exception):
    """There will be no answer, so the call is denied (MC-31)."""

    def __init__(self, reason: str, *, notify: bool) -> None:
        super().__init__(reason)
        self.notify = notify


@dataclass
class _Asker:
    """What one qube has asked."""

    questions: RateLimit
    notices: RateLimit
    shown: RateLimit
    open: int = 0
    is_muted: bool = False
    """It has asked too often, and the user knows."""


class Prompts:
    """``path``: the socket of the policy agent; ``desk`` sees to it that somebody listens there."""

    def __init__(self, path: Path, desk: Desk | None = None) -> None:
        self._path = path
        self._desk = desk or Unattended()
        self.sessions: Callable[[str], AskedQube | None] = lambda _: None
        """Of qubes that run, by name: some show the windows of others, and ask their user."""
        self._loop = asyncio.get_running_loop()
        self._askers: dict[str, _Asker] = {}
        self._open = 0
        self._notices: set[asyncio.Task[None]] = set()
        self._shown = 0
        """Notifications of qubes on their way."""

    async def close(self) -> None:
        for task in tuple(self._notices):
            task.cancel()
        await asyncio.gather(*self._notices, return_exceptions=True)

    async def drain(self) -> None:
        """Wait for the notices that are on their way; each has a time limit."""
        await asyncio.gather(*self._notices, return_exceptions=True)

    def forget(self, qube: str) -> None:
        """It has no session any more: what it asked before does not count later."""
        self._askers.pop(qube, None)

    async def ask(self, question: Ask) -> str | None:
        """The target the user chose, None for no. Cancelling takes the question back. :raise NobodyToAsk:"""
        source = question.request.requested_source or question.request.source
        facts = question.snapshot.find(source)
        if facts is None or facts.guivm is None:
            raise NobodyToAsk(f"{Reason.NOBODY_TO_ASK.value}: {source} has no desktop here", notify=False)
        asker = self._asker(question.request.source)
        if asker.open >= MAX_OPEN_OF_QUBE or self._open >= MAX_OPEN or not asker.questions.take(self._loop.time()):
            is_told, asker.is_muted = asker.is_muted, True
            raise NobodyToAsk("it asks the user too often", notify=not is_told)
        asker.is_muted = False
        asker.open += 1
        self._open += 1
        try:
            answer = await self._answer(facts.guivm, question_of(question))
            return agent.decode_answer(answer, question.targets)
        except (CannotAsk, OSError, TimeoutError, LocalProtocolError, RemoteProtocolError) as error:
            raise NobodyToAsk(f"{Reason.NOBODY_TO_ASK.value}: {error or 'no answer'}", notify=False) from error
        finally:
            asker.open -= 1
            self._open -= 1

    async def _answer(self, guivm: str, question: Question) -> bytes:
        """From the program here, or from the one in the qube that shows the caller's windows."""
        if guivm == ADMIN_NAME:
            return await self._exchange(question, timeout=None)
        return await self._asked_in(guivm, ASK, question)

    async def _asked_in(self, guivm: str, service: str, request: agent.Request) -> bytes:
        """:raise CannotAsk: :raise OSError: the qube has no agent now. :raise LocalProtocolError:"""
        session = self.sessions(guivm)
        if session is None:
            raise CannotAsk(f"{guivm}, which shows its windows, does not run")
        _, _, body = agent.encode(request).partition(b"\0")
        answer = await session.ask_service(service, body, agent.MAX_ANSWER)
        if answer is None:
            raise CannotAsk(f"{service} in {guivm} failed")
        return answer

    def notify(self, resolution: Resolution, request: Request, target: str, guivm: str) -> None:
        """Have the user told of a decision, where the caller's windows are shown. Some of many are left out."""
        if len(self._notices) >= MAX_NOTICES:
            return
        if not self._asker(request.source).notices.take(self._loop.time()):
            return
        source = request.requested_source or request.source
        self._send(Notice(resolution, request.service, request.argument, source, target), guivm)

    def tell(self, qube: str | None, text: str) -> None:
        """Have the user told something about a qube, or (None) about the clipboard. Whoever tells sees to it that it is
        not too much; some of very many are left out."""
        if len(self._notices) < MAX_NOTICES:
            self._send(Remark(qube or "", text), ADMIN_NAME)

    async def show(self, message: Notification) -> None:
        """Have a notification of a qube shown. :raise CannotAsk: it comes too often, or nobody is there to show it."""
        if self._shown >= MAX_SHOWN or not self._asker(message.source).shown.take(self._loop.time()):
            raise CannotAsk("there are too many of them")
        self._shown += 1
        try:
            await self._exchange(message, timeout=NOTICE_TIMEOUT_S)
        except (OSError, TimeoutError, LocalProtocolError) as error:
            raise CannotAsk(str(error) or "nobody answers") from error
        finally:
            self._shown -= 1

    def _send(self, notice: Notice | Remark, guivm: str) -> None:
        task = self._loop.create_task(self._send_notice(notice, guivm), name=f"notice about {notice.source}")
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    def _asker(self, qube: str) -> _Asker:
        if qube not in self._askers:
            self._askers[qube] = _Asker(
                RateLimit(QUESTIONS_BURST, QUESTIONS_PER_SECOND),
                RateLimit(NOTICES_BURST, NOTICES_PER_SECOND),
                RateLimit(SHOWN_BURST, SHOWN_PER_SECOND),
            )
        return self._askers[qube]

    async def _send_notice(self, notice: Notice | Remark, guivm: str) -> None:
        try:
            if guivm == ADMIN_NAME:
                await self._exchange(notice, timeout=NOTICE_TIMEOUT_S)
            else:
                async with asyncio.timeout(NOTICE_TIMEOUT_S):
                    await self._asked_in(guivm, NOTIFY, notice)
        except (CannotAsk, OSError, TimeoutError, LocalProtocolError) as error:
            log.debug("a notice was not shown: %s", error)

    async def _exchange(self, request: agent.Request, *, timeout: float | None) -> bytes:
        """:raise CannotAsk: nobody is there. :raise OSError: somebody else than this user or root is, or left.
        :raise TimeoutError: :raise LocalProtocolError: it cannot be asked.
        """
        data = agent.encode(request)
        async with asyncio.timeout(timeout), self._connected() as connection:
            await self._loop.sock_sendall(connection, data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while len(answer) <= agent.MAX_ANSWER:
                part = await self._loop.sock_recv(connection, agent.MAX_ANSWER)
                if not part:
                    break
                answer += part
            return answer

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[socket.socket]:
        with await self._connect() as connection:
            _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid not in (0, os.geteuid()):
                raise PermissionError(f"user {uid} serves the prompts")
            yield connection

    async def _connect(self) -> socket.socket:
        try:
            return await self._connect_now()
        except (FileNotFoundError, ConnectionRefusedError):
            await self._desk.open()
            return await self._connect_now()

    async def _connect_now(self) -> socket.socket:
        with ExitStack() as undo:
            connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.setblocking(False)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                with address(self._path) as where:
                    await self._loop.sock_connect(connection, where)
            undo.pop_all()
            return connection


def question_of(question: Ask) -> Question:
    """What the policy agent is asked."""
    request = question.request
    source = request.requested_source or request.source
    wanted = {source, *question.targets}
    shown = {name: icon for name, icon in icons(question.snapshot).items() if name in wanted}
    return Question(source, request.service, request.argument, question.targets, question.default_target, shown)


def icons(snapshot: Snapshot) -> dict[str, str]:
    """Icon of every qube, and of every disposable that can be made."""
    found = {name: qube.icon for name, qube in snapshot.qubes.items()}
    for name, qube in snapshot.qubes.items():
        if qube.template_for_dispvms:
            found[DISPVM_OF + name] = qube.icon.replace("app", "disp")
    return found
