"""``qrexec-fork-server``: carries out calls inside a user's session, with what that session has in its environment.

The agent hands a call over (:mod:`insula_agent.fork_server`); this connects its data channel and runs it as any other
(:mod:`insula_agent.calls`). It goes into the background when it can be connected to, and ends with SIGTERM.
"""

from __future__ import annotations

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]
import os
import pwd
import sys

from insula_agent import plans, sockets
from insula_agent.calls import Call
from insula_agent.fork_server import DEFAULT_SOCKET, Decoder
from insula_agent.log import log
from insula_agent.loop import READ, Loop, Timer
from insula_agent.plans import Configuration, Order, StartFailed
from insula_agent.single_socket import SingleSocketRequests
from insula_agent.vchan_link import VchanLink
from insula_proto import limits, services
from insula_proto.errors import RemoteProtocolError
from insula_proto.qrexec import EXIT_PROBLEM, JustExec
from insula_proto.services import ServiceBroken, Settings
from insula_proto.vchan import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_agent.fork_server import Message
    from insula_agent.plans import Plan
    from insula_agent.sockets import Socket

SIGTERM = 15
MAX_CALLS = limits.MAX_CALLS
"""Calls at once: no agent has more."""
REQUEST_TIMEOUT = 10.0
"""Seconds an agent has from connecting to having handed over."""
READ_SIZE = 65536
USAGE = f"""usage: qrexec-fork-server [SOCKET]

Run what the agent hands over as the user, and in the session, that this was started in. SOCKET is where it does that
(default {DEFAULT_SOCKET.replace("%s", "$USER")}). Goes into the background when it is ready.
"""


class _Connection:
    """The agent's: hands over one call, and is closed when that is over."""

    def __init__(self, server: Server, connection: Socket) -> None:
        connection.setblocking(False)
        self._server = server
        self._connection = connection
        self._fd = connection.fileno()
        self._decoder = Decoder()
        self._timer: Timer = server.loop.after(REQUEST_TIMEOUT, self.close)
        server.loop.watch(self._fd, READ, self._ready)

    def _ready(self, events: int) -> None:
        del events
        try:
            untrusted_data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            untrusted_data = b""
        if not untrusted_data:
            self.close()
            return
        try:
            message = self._decoder.receive(untrusted_data)
        except RemoteProtocolError as error:
            log(f"handing over: {error}")
            self.close()
            return
        if message is not None:
            self._timer.cancel()
            # That the agent goes away does not end the call: who matters is at the other end of the data channel.
            self._server.loop.forget(self._fd)
            self._server.run_call(self, message)

    def close(self) -> None:
        self._timer.cancel()
        self._server.loop.forget(self._fd)
        self._connection.close()
        self._server.connections.discard(self)


class Server:
    """Serves ``listener``, whose queue may hold connections already."""

    def __init__(self, listener: Socket, place: Place) -> None:
        listener.setblocking(False)
        self.loop = Loop()
        self._listener = listener
        self._link = VchanLink(self.loop, place, lambda: None)
        self._user = pwd.getpwuid(os.geteuid()).pw_name.encode()
        self._configuration = Configuration(
            os.environ.get("QREXEC_SERVICE_PATH", services.DEFAULT_SERVICE_PATH),
            os.environ.get("QUBES_RPC_CONFIG_PATH", services.DEFAULT_CONFIG_PATH),
            "",
            may_switch=False,
        )
        self._configuration.is_session = True
        self.connections: set[_Connection] = set()
        self._calls: set[Call] = set()
        self._single_sockets = SingleSocketRequests(self.loop, self._calls)

    def run(self) -> int:
        self.loop.watch(self._listener.fileno(), READ, self._accept)
        try:
            return self.loop.run()
        finally:
            for call in tuple(self._calls):
                call.kill()
            self._link.close()

    def _accept(self, events: int) -> None:
        del events
        try:
            connection = sockets.accept(self._listener)
        except OSError:
            return
        if len(self.connections) >= MAX_CALLS:
            connection.close()
        else:
            self.connections.add(_Connection(self, connection))

    def run_call(self, connection: _Connection, message: Message) -> None:
        command = message.command or b""

        def make_plan() -> Plan:
            try:
                order = Order(self._user, command, services.parse_call(command), Settings())
            except ServiceBroken as error:
                raise StartFailed(str(error), EXIT_PROBLEM) from error
            return plans.plan(order, self._configuration)

        def end() -> None:
            self._calls.discard(call)
            connection.close()

        self._single_sockets.start()
        call = Call(
            self.loop, self._link, make_plan, end, self._single_sockets.look, is_detached=isinstance(message, JustExec)
        )
        self._calls.add(call)
        call.connect(self._link.connect(message.domain, message.port, call))


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise SystemExit(0)


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) > 1 or (words and words[0].startswith("-")):
        is_help = words in (["-h"], ["--help"])
        (sys.stdout if is_help else sys.stderr).write(USAGE)
        return 0 if is_help else 1
    path = words[0] if words else DEFAULT_SOCKET.replace("%s", pwd.getpwuid(os.geteuid()).pw_name)
    try:
        place = Place.of(os.environ)
        listener = sockets.listen(path, 0o600, MAX_CALLS)
    except (OSError, ValueError) as error:
        log(str(error))
        return 1
    if os.fork():
        return 0
    _signal.signal(SIGTERM, _terminate)
    try:
        return Server(listener, place).run()
    finally:
        sockets.remove(path)
