"""``qrexec-policy-daemon``: answers questions about policy on three sockets (reference: qrexec, §7).

``policy.sock`` is asked by daemons. ``policy.EvalSimple`` and ``policy.EvalGUI`` are services of the host that qubes
call, so what comes there is a qube's but for its first line; anything wrong is closed without a word.
"""

from __future__ import annotations

import asyncio
import getopt
import grp
import os
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from insula.policy.evaluate import QuestionError
from insula.policy.snapshot import Snapshot
from insula.qrexec.errors import QubesdError
from insula.qrexec.judge import Judge
from insula.qrexec.log import name_program, say
from insula.qrexec.places import EVAL_GUI_SOCKET, EVAL_SIMPLE_SOCKET, policy_socket
from insula.qrexec.policy_protocol import MAX_EVAL_BODY, MAX_EVAL_HEAD, Question, QuestionDecoder, decode_eval
from insula.qrexec.verdicts import store_of
from insula_proto.errors import RemoteProtocolError

READ_SIZE = 65536
MAX_CONNECTIONS = 1024
"""At once, on all sockets: what some qubes may be asking at a time (MC-15). Others are closed."""
REQUEST_LIMIT_S = 60.0
"""A question must be complete by then; qubes write part of it (MC-13)."""
ACCEPT_PAUSE_S = 0.2
SOCKET_MODE = 0o660
GROUP = "qubes"
BACKLOG = 128

USAGE = """\
Usage: qrexec-policy-daemon [options]

Answers questions about policy.

  --policy-path=FOLDER        rules; given twice, files of the first folder win
                              [/run/qubes/policy.d and /etc/qubes/policy.d]
  --socket-path=PATH          [/run/qubes/policy.sock]
  --eval-socket-path=PATH     [/etc/qubes-rpc/policy.EvalSimple]
  --gui-socket-path=PATH      [/etc/qubes-rpc/policy.EvalGUI]
  -h, --help                  show this
"""


class Server:
    """The connections of all three sockets."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def listening(self, path: str, serve: Callable[[socket.socket], Awaitable[None]]) -> AsyncIterator[None]:
        """Have what connects to ``path`` served. :raise OSError:"""
        loop = asyncio.get_running_loop()
        Path(path).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            Path(path).chmod(SOCKET_MODE)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            loop.add_reader(listener.fileno(), partial(self._accept, listener, serve))
            try:
                yield
            finally:
                loop.remove_reader(listener.fileno())
                Path(path).unlink(missing_ok=True)

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No descriptor is left (MC-107). Who connected waits; it is tried again when some may be free.
            say(f"a question could not be taken: {error}")
            self._pause(listener, serve)
            return
        connection.setblocking(False)
        if len(self._tasks) >= MAX_CONNECTIONS:
            say("too many questions at once")
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection, serve), name="question")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _pause(self, listener: socket.socket, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())

        def go_on() -> None:
            if listener.fileno() >= 0:
                loop.add_reader(listener.fileno(), partial(self._accept, listener, serve))

        loop.call_later(ACCEPT_PAUSE_S, go_on)

    async def _serve(self, connection: socket.socket, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        with connection:
            try:
                await serve(connection)
            except (OSError, TimeoutError, RemoteProtocolError, QubesdError, QuestionError) as error:
                say(f"not answered: {error or 'not asked in time'}")

    # the protocols

    async def serve_daemon(self, connection: socket.socket) -> None:
        """``policy.sock``. :raise RemoteProtocolError:"""
        question = await self._read_question(connection)
        await self._reply(connection, self._judge.answer(question))

    async def serve_eval(self, name: str, connection: socket.socket) -> None:
        """``policy.EvalSimple``. :raise RemoteProtocolError:"""
        question, _ = await self._read_eval(name, connection)
        await self._reply(connection, self._judge.answer(question))

    async def serve_gui(self, name: str, connection: socket.socket) -> None:
        """``policy.EvalGUI``: only about qubes whose desktop the caller is. :raise RemoteProtocolError:"""
        question, caller = await self._read_eval(name, connection)
        snapshot = await self._judge.snapshot()
        if not is_desktop_of(caller, (question.source, question.target), snapshot):
            raise RemoteProtocolError(f"{caller} has not the desktop of {question.source} and {question.target}")
        await self._reply(connection, self._judge.answer_in(question, snapshot))

    async def _read_question(self, connection: socket.socket) -> Question:
        decoder = QuestionDecoder()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(REQUEST_LIMIT_S):
            while untrusted_data := await loop.sock_recv(connection, READ_SIZE):
                question = decoder.receive(untrusted_data)
                if question is not None:
                    return question
        return decoder.finish()

    async def _read_eval(self, name: str, connection: socket.socket) -> tuple[Question, str]:
        """All up to the end, or one byte more than there may be."""
        untrusted_data = b""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(REQUEST_LIMIT_S):
            while len(untrusted_data) <= MAX_EVAL_HEAD + MAX_EVAL_BODY:
                part = await loop.sock_recv(connection, READ_SIZE)
                if not part:
                    break
                untrusted_data += part
        return decode_eval(untrusted_data, name)

    async def _reply(self, connection: socket.socket, answering: Awaitable[str]) -> None:
        """Give the answer; whoever hangs up first takes the question back (MC-24)."""
        task = asyncio.ensure_future(answering)
        try:
            with _HangUp(connection, task.cancel):
                answer = await task
        except asyncio.CancelledError:
            if not task.cancelled() or asyncio.current_task().cancelling():  # type: ignore[union-attr] # in a task
                task.cancel()
                raise
            return
        await asyncio.get_running_loop().sock_sendall(connection, answer.encode("ascii"))


def is_desktop_of(caller: str, qubes: Sequence[str], snapshot: Snapshot) -> bool:
    """Whether all of them carry the tag that names the caller as their desktop."""
    found = [snapshot.qubes.get(name) for name in qubes]
    return all(qube is not None and f"guivm-{caller}" in qube.tags for qube in found)


class _HangUp:
    """Context manager: calls back when the other end has closed. The end of its questions is not that: it may have
    ended only its half, so the socket is watched for the hang-up alone, by an epoll of its own."""

    def __init__(self, connection: socket.socket, callback: Callable[[], object]) -> None:
        self._epoll = select.epoll()
        self._epoll.register(connection.fileno(), select.EPOLLHUP)
        self._callback = callback

    def __enter__(self) -> None:
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._hung_up)

    def __exit__(self, *exc: object) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _hung_up(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._callback()


# --- the process ---------------------------------------------------------------------------------------------------


async def serve(folders: list[str], socket_path: str, eval_path: str, gui_path: str) -> None:
    """Until SIGTERM. :raise OSError: a socket cannot be made."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    judge = Judge(store_of(folders))
    server = Server(judge)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(judge.close)
        stack.push_async_callback(server.close)
        await stack.enter_async_context(server.listening(eval_path, partial(server.serve_eval, "policy.EvalSimple")))
        await stack.enter_async_context(server.listening(gui_path, partial(server.serve_gui, "policy.EvalGUI")))
        await stack.enter_async_context(server.listening(socket_path, server.serve_daemon))
        await stopped.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    names = ["policy-path=", "socket-path=", "eval-socket-path=", "gui-socket-path=", "help"]
    try:
        given, words = getopt.gnu_getopt(list(sys.argv[1:] if arguments is None else arguments), "h", names)
    except getopt.GetoptError as error:
        print(f"qrexec-policy-daemon: {error}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    values = dict(given)
    folders = [value for name, value in given if name == "--policy-path"]
    if "-h" in values or "--help" in values:
        print(USAGE, end="")
        return 0
    if words or len(folders) > 2:
        print(f"qrexec-policy-daemon: takes no words, and two folders at most\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    name_program("qrexec-policy-daemon")
    os.umask(0o007)
    _join_group()
    try:
        asyncio.run(
            serve(
                folders,
                values.get("--socket-path", policy_socket()),
                values.get("--eval-socket-path", EVAL_SIMPLE_SOCKET),
                values.get("--gui-socket-path", EVAL_GUI_SOCKET),
            )
        )
    except OSError as error:
        print(f"qrexec-policy-daemon: {error}", file=sys.stderr)
        return 1
    return 0


def _join_group() -> None:
    """As root: the sockets are those of the group, where there is one."""
    if os.geteuid() != 0:
        return
    try:
        os.setgid(grp.getgrnam(GROUP).gr_gid)
    except KeyError:
        return


if __name__ == "__main__":
    sys.exit(main())
