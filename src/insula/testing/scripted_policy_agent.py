"""The program that asks the user, as a script: what it is asked is kept, the answer is the test's."""

from __future__ import annotations

import asyncio
import select
from pathlib import Path

from insula.policy import agent
from insula.policy.agent import Notice, Notification, Question, Remark


class ScriptedAgent:
    """Serves the policy agent's socket: keeps what it was told, answers when the test says so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.questions: list[Question] = []
        self.notices: list[Notice] = []
        self.remarks: list[Remark] = []
        self.notifications: list[Notification] = []
        self.withdrawn = 0
        self.answer = b"allow:vault"
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = agent.decode(await reader.read())
        try:
            if isinstance(request, Notice):
                self.notices.append(request)
                return
            if isinstance(request, Remark):
                self.remarks.append(request)
                return
            if isinstance(request, Notification):
                self.notifications.append(request)
                return
            self.questions.append(request)
            while not self.may_answer.is_set():
                if _hung_up(writer):
                    self.withdrawn += 1
                    return
                await asyncio.sleep(0.005)
            writer.write(self.answer)
            await writer.drain()
        finally:
            writer.close()


def _hung_up(writer: asyncio.StreamWriter) -> bool:
    """Whether the peer closed its socket altogether, of which the end of what it said is no sign."""
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), 0)
    return bool(poll.poll(0))
