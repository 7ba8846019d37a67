"""Who may say what when on qrexec's channels: six small state machines over :mod:`insula_proto.qrexec`.

::

    control channel   AgentControl ── HELLO, TRIGGER_SERVICE3/4, CONNECTION_TERMINATED ──► DaemonControl
                                   ◄─ HELLO, EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT, SERVICE_REFUSED ──
    data channel      CallerEnd ──── HELLO, STDIN ──────────────────────────────────────► ServiceEnd
                                ◄─── HELLO, STDOUT, STDERR, EXIT_CODE ────────────────────
    local requests    LocalClient ── HELLO, then one EXEC_CMDLINE, JUST_EXEC or SERVICE_CONNECT ──► LocalServer
                                  ◄─ HELLO, then the same type with domain and port ───────────────

    states            new ── peer's HELLO ──► open ── EXIT_CODE (data channel) ──► closed

``receive`` takes bytes in any split and returns messages that are allowed in the present state; anything else is a
RemoteProtocolError. The methods that send return bytes and raise LocalProtocolError when called out of order.
"""

from __future__ import annotations

from insula_proto import limits, qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import (
    CONNECTION_TERMINATED,
    EXEC_CMDLINE,
    EXIT_CODE,
    HELLO,
    JUST_EXEC,
    SERVICE_CONNECT,
    SERVICE_REFUSED,
    STDERR,
    STDIN,
    STDOUT,
    TRIGGER_SERVICE,
    TRIGGER_SERVICE3,
    TRIGGER_SERVICE4,
    ConnectionTerminated,
    Decoder,
    ExecCmdline,
    ExitCode,
    Hello,
    JustExec,
    Message,
    ServiceConnect,
    ServiceRefused,
    Stderr,
    Stdin,
    Stdout,
    TriggerService,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LAST_DATA_PORT = limits.FIRST_DATA_PORT + limits.MAX_CALLS - 1


class ServiceRequested(Message):
    """A trigger with its texts sanitised.

    ``is_altered`` says that a byte had to be replaced: such a request is refused before policy sees it (MC-16).
    Who asks is known from the channel; ``claimed_source`` (version 4) is only for qubes that relay for others.
    """

    __slots__ = ("claimed_source", "ident", "is_altered", "service", "target")
    claimed_source: str
    target: str
    service: str
    ident: bytes
    is_altered: bool

    def __init__(self, request: TriggerService) -> None:
        source = request.source or b""
        texts = (
            qrexec.sanitise(source, qrexec.NAME_ALPHABET),
            qrexec.sanitise(request.target, qrexec.NAME_ALPHABET),
            qrexec.sanitise(request.service, qrexec.SERVICE_ALPHABET),
        )
        originals = (source, request.target, request.service)
        is_altered = [text.encode() for text in texts] != list(originals)
        self._fill(
            claimed_source=texts[0], target=texts[1], service=texts[2], ident=request.ident, is_altered=is_altered
        )


class _Channel:
    """What all have in common: HELLO first, the smaller version counts, and none below ``oldest``."""

    _after_hello: Mapping[int, tuple[int, int]]

    def __init__(self, own_version: int = qrexec.VERSION, oldest: int = qrexec.MIN_VERSION) -> None:
        self._own_version = own_version
        self._oldest = oldest
        self._decoder = Decoder(qrexec.lengths(HELLO))
        self.version: int | None = None
        """Negotiated; None before the peer's HELLO."""

    @property
    def is_between_messages(self) -> bool:
        """Whether the peer owes us nothing: it has said HELLO and is not in the middle of a message (MC-13)."""
        return self.version is not None and self._decoder.is_between_messages

    def hello(self) -> bytes:
        """Our HELLO."""
        return qrexec.encode(Hello(self._own_version))

    def _allowed(self, version: int) -> Mapping[int, tuple[int, int]]:
        del version
        return self._after_hello

    def receive(self, untrusted_data: bytes) -> list[Message]:
        """Return the messages completed by these bytes, HELLO among them (the version is set then)."""
        if self.version is not None:
            return self._check(self._decoder.receive(untrusted_data))
        # HELLO alone first: what may follow it is known only then.
        position = 0
        while position < len(untrusted_data):
            end = position + self._decoder.missing
            messages = self._decoder.receive(untrusted_data[position:end])
            if messages:
                assert isinstance(messages[0], Hello)
                self.version = qrexec.negotiate(messages[0].version, self._own_version, self._oldest)
                self._decoder.allowed = self._allowed(self.version)
                return messages + self._check(self._decoder.receive(untrusted_data[end:]))
            position = end
        return []

    def _check(self, messages: list[Message]) -> list[Message]:
        return messages

    def _require_open(self) -> None:
        if self.version is None:
            raise LocalProtocolError("the peer has not said HELLO yet")


class AgentControl(_Channel):
    """Control channel, the qube's end. The agent says HELLO first."""

    _after_hello = qrexec.lengths(EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT, SERVICE_REFUSED)

    def connection_terminated(self, domain: int, port: int) -> bytes:
        self._require_open()
        return qrexec.encode(ConnectionTerminated(domain, port))

    def trigger_service(self, target: bytes, ident: bytes, service: bytes, source: bytes = b"") -> bytes:
        """Ask for a service in the form the negotiated version has; before version 4 there is no source."""
        self._require_open()
        assert self.version is not None
        if self.version < 4 and source:
            raise LocalProtocolError(f"version {self.version} has no source")
        if self.version < qrexec.MIN_VERSION:
            return qrexec.encode_trigger2(TriggerService(None, target, ident, service))
        return qrexec.encode(TriggerService(source if self.version >= 4 else None, target, ident, service))

    def withdraw_service(self, ident: bytes) -> bytes:
        """Who asked under this ident has gone. Published daemons do not know this; ours do, over the mux (MC-24)."""
        self._require_open()
        return qrexec.encode(ServiceRefused(ident))


class DaemonControl(_Channel):
    """Control channel, the host's end: everything it receives was written by a qube.

    Send :meth:`answer` when the first message (HELLO) has come. ``may_withdraw``: the agent is ours and takes requests
    back by SERVICE_REFUSED with their ident, which may be unknown or answered already.
    """

    def __init__(
        self, own_version: int = qrexec.VERSION, oldest: int = qrexec.MIN_VERSION, *, may_withdraw: bool = False
    ) -> None:
        super().__init__(own_version, oldest)
        self._may_withdraw = may_withdraw

    def _allowed(self, version: int) -> Mapping[int, tuple[int, int]]:
        trigger = {2: TRIGGER_SERVICE, 3: TRIGGER_SERVICE3}.get(version, TRIGGER_SERVICE4)
        own = (SERVICE_REFUSED,) if self._may_withdraw else ()
        return qrexec.lengths(trigger, CONNECTION_TERMINATED, *own)

    def answer(self) -> bytes:
        """HELLO with the negotiated version (published daemons echo the agent's; the same for 2 to 4)."""
        self._require_open()
        assert self.version is not None
        return qrexec.encode(Hello(self.version))

    def execute(self, message: qrexec.ExecCmdline | qrexec.JustExec) -> bytes:
        self._require_open()
        if message.command is None:
            raise LocalProtocolError("nothing to execute")
        return qrexec.encode(message)

    def connect_service(self, domain: int, port: int, ident: bytes) -> bytes:
        return self.forward_connect(ServiceConnect(domain, port, ident))

    def forward_connect(self, message: ServiceConnect) -> bytes:
        """Pass on what a local client said."""
        self._require_open()
        if message.ident is None:
            raise LocalProtocolError("nothing to connect")
        return qrexec.encode(message)

    def refuse_service(self, ident: bytes) -> bytes:
        self._require_open()
        return qrexec.encode(ServiceRefused(ident))

    def _check(self, messages: list[Message]) -> list[Message]:
        checked: list[Message] = []
        for message in messages:
            if isinstance(message, ConnectionTerminated):
                if not limits.FIRST_DATA_PORT <= message.port <= LAST_DATA_PORT:
                    raise RemoteProtocolError(f"CONNECTION_TERMINATED for port {message.port}")
                checked.append(message)
            elif isinstance(message, TriggerService):
                checked.append(ServiceRequested(message))
            else:
                checked.append(message)
        return checked


class _DataEnd(_Channel):
    """One end of a data channel: streams that end once each."""

    def __init__(self, own_version: int = qrexec.VERSION, oldest: int = qrexec.MIN_VERSION) -> None:
        super().__init__(own_version, oldest)
        self._ended: set[int] = set()

    @property
    def max_chunk(self) -> int:
        """Bytes in one data message, in the negotiated version."""
        return qrexec.max_chunk(self._own_version if self.version is None else self.version)

    def _allowed(self, version: int) -> Mapping[int, tuple[int, int]]:
        if version >= qrexec.MIN_VERSION:
            return self._after_hello
        return {**self._after_hello, **dict.fromkeys((STDIN, STDOUT, STDERR), (0, qrexec.max_chunk(version)))}

    def _data(self, kind: int, data: bytes | memoryview) -> list[bytes]:
        self._require_sendable(kind)
        return qrexec.encode_data(kind, data, self.max_chunk)

    def _header(self, kind: int, size: int) -> bytes:
        self._require_sendable(kind)
        if not 0 < size <= self.max_chunk:
            raise LocalProtocolError(f"data message of {size} bytes")
        return qrexec.HEADER.pack(kind, size)

    def _end(self, kind: int) -> bytes:
        self._require_sendable(kind)
        self._ended.add(kind)
        return qrexec.HEADER.pack(kind, 0)

    def _require_sendable(self, kind: int) -> None:
        self._require_open()
        if kind in self._ended:
            raise LocalProtocolError(f"data of type {kind:#x} after its end")


class CallerEnd(_DataEnd):
    """The end that gives STDIN and gets STDOUT, STDERR and, as the last message of all, EXIT_CODE.

    A service that sends data as STDIN means its STDOUT (published ends accept that too).
    """

    _after_hello = qrexec.lengths(STDIN, STDOUT, STDERR, EXIT_CODE)

    def __init__(self, own_version: int = qrexec.VERSION, oldest: int = qrexec.MIN_VERSION) -> None:
        super().__init__(own_version, oldest)
        self._peer_ended: set[type[Message]] = set()
        self.exit_code: int | None = None

    def stdin(self, data: bytes | memoryview) -> list[bytes]:
        return self._data(STDIN, data)

    def stdin_header(self, size: int) -> bytes:
        """What goes before 1 to :attr:`max_chunk` bytes of input, for callers who do not want them copied."""
        return self._header(STDIN, size)

    def stdin_end(self) -> bytes:
        return self._end(STDIN)

    @property
    def missing(self) -> int:
        """Bytes up to the end of the next header, or of the message it began: one at a time for who feeds no more."""
        return self._decoder.missing

    @property
    def output_left(self) -> int:
        """Bytes that come next and are STDOUT, for callers who do not want to read them; 0: something else comes."""
        return self._decoder.left_of(STDOUT) if self.version is not None else 0

    def skip_output(self, count: int) -> None:
        """So many of them went another way. :raise RemoteProtocolError: they may not come any more."""
        if self.exit_code is not None or Stdout in self._peer_ended:
            raise RemoteProtocolError("Stdout after its end")
        self._decoder.skip(count)

    def take_stdout(self, untrusted_data: bytes, bodies: list[bytes | memoryview]) -> int:
        """Append the output with which the bytes begin; return how many that was: the rest is for :meth:`receive`."""
        if self.version is None or self.exit_code is not None or Stdout in self._peer_ended:
            return 0
        return self._decoder.take_bodies(STDOUT, untrusted_data, bodies)

    def _check(self, messages: list[Message]) -> list[Message]:
        checked: list[Message] = []
        for message in messages:
            if self.exit_code is not None:
                raise RemoteProtocolError("a message after EXIT_CODE")
            if isinstance(message, ExitCode):
                self.exit_code = message.code
            elif isinstance(message, (Stdin, Stdout, Stderr)):
                if isinstance(message, Stdin):
                    message = Stdout(message.data)  # noqa: PLW2901
                if type(message) in self._peer_ended:
                    raise RemoteProtocolError(f"{type(message).__name__} after its end")
                if not message.data:
                    self._peer_ended.add(type(message))
            checked.append(message)
        return checked


class ServiceEnd(_DataEnd):
    """The end that runs the command. A caller's STDERR and EXIT_CODE are ignored, its STDOUT is taken as STDIN."""

    _after_hello = qrexec.lengths(STDIN, STDOUT, STDERR, EXIT_CODE)

    def __init__(self, own_version: int = qrexec.VERSION, oldest: int = qrexec.MIN_VERSION) -> None:
        super().__init__(own_version, oldest)
        self._stdin_ended = False
        self._is_closed = False

    def stdout(self, data: bytes | memoryview) -> list[bytes]:
        return self._data(STDOUT, data)

    def stdout_header(self, size: int) -> bytes:
        """What goes before 1 to :attr:`max_chunk` bytes of output, for callers who do not want them copied."""
        return self._header(STDOUT, size)

    def stdout_end(self) -> bytes:
        return self._end(STDOUT)

    def stderr(self, data: bytes | memoryview) -> list[bytes]:
        return self._data(STDERR, data)

    def stderr_header(self, size: int) -> bytes:
        """As :meth:`stdout_header`."""
        return self._header(STDERR, size)

    def stderr_end(self) -> bytes:
        return self._end(STDERR)

    def finish(self, code: int) -> bytes:
        """What ends the call: the ends of output not sent yet, then EXIT_CODE."""
        self._require_open()
        if self._is_closed:
            raise LocalProtocolError("a second EXIT_CODE")
        self._is_closed = True
        ends = [self._end(kind) for kind in (STDOUT, STDERR) if kind not in self._ended]
        return b"".join([*ends, qrexec.encode(ExitCode(code))])

    def finish_detached(self, code: int) -> bytes:
        """The only message of a call by JUST_EXEC."""
        self._require_open()
        self._is_closed = True
        return qrexec.encode(ExitCode(code))

    def take_stdin(self, untrusted_data: bytes, bodies: list[bytes | memoryview]) -> int:
        """Append the input with which the bytes begin; return how many that was: the rest is for :meth:`receive`."""
        if self.version is None or self._stdin_ended:
            return 0
        return self._decoder.take_bodies(STDIN, untrusted_data, bodies)

    def _check(self, messages: list[Message]) -> list[Message]:
        checked: list[Message] = []
        for message in messages:
            if isinstance(message, (Stdin, Stdout)):
                if self._stdin_ended:
                    raise RemoteProtocolError("STDIN after its end")
                self._stdin_ended = not message.data
                checked.append(message if isinstance(message, Stdin) else Stdin(message.data))
            elif not isinstance(message, (Stderr, ExitCode)):
                checked.append(message)
        return checked


class LocalServer(_Channel):
    """The daemon's end of a local client's connection: HELLO first, one request, nothing after it."""

    _after_hello = {  # noqa: RUF012 - as in the base: a mapping nobody changes
        **qrexec.lengths(EXEC_CMDLINE, JUST_EXEC),
        SERVICE_CONNECT: qrexec.LOCAL_CONNECT_LENGTHS,
    }

    def __init__(self) -> None:
        super().__init__(qrexec.LOCAL_VERSION)
        self._request: Message | None = None

    def answer(self, domain: int, port: int) -> bytes:
        """Domain and port of the data channel, in a message of the request's type."""
        return qrexec.encode(_answer_to(self._request, domain, port))

    def _check(self, messages: list[Message]) -> list[Message]:
        for message in messages:
            if self._request is not None:
                raise RemoteProtocolError("a second request")
            self._request = message
        if messages:
            self._decoder.allowed = {}
        return messages


class LocalClient(_Channel):
    """A local client's end: it hears HELLO, answers it, asks for one thing."""

    def __init__(self) -> None:
        super().__init__(qrexec.LOCAL_VERSION)
        self._request: ExecCmdline | JustExec | ServiceConnect | None = None

    def request(self, message: ExecCmdline | JustExec | ServiceConnect) -> bytes:
        """:raise LocalProtocolError: asked before, or not asked for by local clients."""
        self._require_open()
        if self._request is not None:
            raise LocalProtocolError("a second request")
        self._request = message
        self._decoder.allowed = {qrexec.kind_of(message): qrexec.ANSWER_LENGTHS}
        return qrexec.encode(message)

    def _allowed(self, version: int) -> Mapping[int, tuple[int, int]]:
        del version
        return {}

    def _check(self, messages: list[Message]) -> list[Message]:
        if messages:
            self._decoder.allowed = {}
        if len(messages) > 1:
            raise RemoteProtocolError("a second answer")
        return messages


def _answer_to(request: Message | None, domain: int, port: int) -> Message:
    if isinstance(request, (ExecCmdline, JustExec)):
        return type(request)(domain, port)
    if isinstance(request, ServiceConnect):
        return ServiceConnect(domain, port, None)
    raise LocalProtocolError("nothing to answer")
