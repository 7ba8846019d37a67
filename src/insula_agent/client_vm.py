"""``qrexec-client-vm``: asks for a service of another qube and is the caller's end of it (reference: qrexec, §3, §4).

The agent answers with a domain and a port, and, where the data channel is a stream of the mux, with descriptors that
*are* the data channel: two pipes, or a socket. Without any this program becomes the server of a vchan over a unix
socket.
"""

from __future__ import annotations

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]
import os
import stat
import struct
import sys

from insula_agent import conveyor, sockets
from insula_proto import qrexec
from insula_proto.errors import LocalProtocolError
from insula_proto.qrexec import EXIT_PROBLEM, EXIT_REFUSED, TriggerService

DEFAULT_SOCKET = "/var/run/qubes/qrexec-agent"
MAX_NAME = 63
"""Bytes of a target's or source's name; the rest is cut off, as published."""
ANSWER = struct.Struct("<II")
_MAX_INHERITED = 1024
_BUFFER_SIZE = 524288
"""Bytes between us and the program each way, where that is allowed."""
EXIT_USAGE = 2
EXIT_FAILED = 1

USAGE = (
    """usage: qrexec-client-vm [OPTIONS] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENT...]]

Ask for a service of another qube. Without PROGRAM, standard input goes to the service and its output comes to standard
output. With PROGRAM (a path), PROGRAM's input and output are connected to the service; ours are passed to it as the
descriptors that SAVED_FD_0 and SAVED_FD_1 name (SAVED_FD_2 too if PASS_LOCAL_STDERR is set).

TARGET is a qube's name, a keyword such as @dispvm, or '' for the one the policy has as default.

  -t, --filter-escape-chars-stdout     make output harmless for a terminal (default if it is one)
  -T, --filter-escape-chars-stderr     the same for error output
      --no-filter-escape-chars-stdout  pass output on as it is
      --no-filter-escape-chars-stderr  the same for error output
  -p, --prefix-data=DATA               send DATA before the input
      --use-stdin-socket               standard input is a socket: use it for output too
  -s, --source-qube=NAME               in whose name a relaying qube asks
  -a, --agent-socket=PATH              where the agent listens (default %s)
      --buffer-size=BYTES              smallest buffer of the data channel (accepted for compatibility)
  -h, --help                           show this

Exit status: that of the service if it is not 0, else PROGRAM's; 126 refused, 255 the connection was lost.
"""
    % DEFAULT_SOCKET
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from insula_agent.sockets import Socket


class UsageError(Exception):
    """The command line is not understood."""


class Options:
    __slots__ = (
        "agent_socket", "filters_stderr", "filters_stdout", "prefix", "program", "service", "source", "target",
        "uses_stdin_socket", "wants_help",
    )  # fmt: skip

    def __init__(self) -> None:
        self.agent_socket = DEFAULT_SOCKET
        self.filters_stdout: bool | None = None
        """None: if it is a terminal."""
        self.filters_stderr: bool | None = None
        self.prefix: bytes | None = None
        self.source: bytes | None = None
        self.uses_stdin_socket = False
        self.wants_help = False
        self.target = b""
        self.service = b""
        self.program: list[str] = []


_LONG = {
    "filter-escape-chars-stdout": "t",
    "filter-escape-chars-stderr": "T",
    "no-filter-escape-chars-stdout": "no-t",
    "no-filter-escape-chars-stderr": "no-T",
    "agent-socket": "a",
    "prefix-data": "p",
    "source-qube": "s",
    "buffer-size": "b",
    "use-stdin-socket": "u",
    "help": "h",
}
_SWITCHES = {
    "t": ("filters_stdout", True),
    "no-t": ("filters_stdout", False),
    "T": ("filters_stderr", True),
    "no-T": ("filters_stderr", False),
    "u": ("uses_stdin_socket", True),
    "h": ("wants_help", True),
}
_WITH_VALUE = frozenset("apsb")
_SHORT = frozenset("tTapsh")


def _words(arguments: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split into options (letter, value) and the rest, which begins at the first word that is none."""
    found: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            letter = _LONG.get(name)
            if letter is None:
                raise UsageError(f"unknown option --{name}")
            if letter not in _WITH_VALUE:
                if equals:
                    raise UsageError(f"--{name} has no value")
            elif not equals:
                if not rest:
                    raise UsageError(f"--{name} needs a value")
                value = rest.pop(0)
            found.append((letter, value))
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter not in _SHORT:
                raise UsageError(f"unknown option -{letter}")
            value = ""
            if letter in _WITH_VALUE:
                if not letters and not rest:
                    raise UsageError(f"-{letter} needs a value")
                value, letters = (letters, "") if letters else (rest.pop(0), "")
            found.append((letter, value))
    return found, rest


def _set(options: Options, letter: str, value: str) -> None:
    if letter in _SWITCHES:
        name, setting = _SWITCHES[letter]
        setattr(options, name, setting)
    elif letter == "a":
        options.agent_socket = value
    elif letter == "b":
        if not value.isascii() or not value.isdigit():
            raise UsageError(f"not a size: {value}")
    elif letter == "p":
        if options.prefix is not None:
            raise UsageError("--prefix-data given twice")
        options.prefix = os.fsencode(value)
    elif letter == "s":
        if options.source is not None:
            raise UsageError("--source-qube given twice")
        options.source = os.fsencode(value)


def parse_options(arguments: list[str]) -> Options:
    """(``argparse`` costs more to import than it saves.) :raise UsageError:"""
    options = Options()
    found, rest = _words(arguments)
    for letter, value in found:
        _set(options, letter, value)
    if options.wants_help:
        return options
    if len(rest) < 2:
        raise UsageError("a target and a service are needed")
    options.target = os.fsencode(rest[0]).replace(b"$", b"@")
    options.service = os.fsencode(rest[1])
    options.program = rest[2:]
    if options.program and options.uses_stdin_socket:
        raise UsageError("PROGRAM cannot be combined with --use-stdin-socket")
    return options


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def ask(agent: Socket, options: Options) -> None:
    """:raise LocalProtocolError: no such service can be asked for. :raise OSError: the agent is not there."""
    message = qrexec.encode(
        TriggerService((options.source or b"")[:MAX_NAME], options.target[:MAX_NAME], b"SOCKET", options.service)
    )
    agent.connect(options.agent_socket)
    # The descriptor says that we take pipes (insula_agent.requests); published agents do not look.
    sent = sockets.send_with_descriptors(agent, message, (0,))
    if sent < len(message):
        agent.sendall(message[sent:])


def hear(agent: Socket) -> tuple[int, int, list[int]] | None:
    """The agent's answer: domain, port and the channel's descriptors (none, one or two); None: refused.

    :raise OSError: the agent went away.
    """
    answer = b""
    channel: list[int] = []
    while len(answer) < ANSWER.size:
        part, descriptors = sockets.receive_with_descriptors(agent, ANSWER.size - len(answer), 2)
        if not part:
            return None
        answer += part
        channel += descriptors
    domain, port = ANSWER.unpack(answer)
    return domain, port, channel


def serve_vchan(domain: int, port: int, patience: float) -> int:
    """Be the server of a vchan; return the connection. :raise OSError, ValueError: nobody comes in time."""
    from insula_proto.vchan import Place  # noqa: PLC0415 - not in a qube

    listener = sockets.listen(Place.of(os.environ).served_for(domain, port), 0o600, 1)
    try:
        listener.settimeout(patience)
        return sockets.accept(listener).detach()
    finally:
        listener.close()


def start_program(words: list[str]) -> tuple[int, int, int]:
    """Start the program; return its pid and our ends. Its input is a socket, which it may use for output too (SIGUSR1),
    its output a pipe, whose pages can be moved on.

    :raise OSError: no process could be made.
    """
    theirs_in, ours_in = sockets.pair(_BUFFER_SIZE)
    ours_out, theirs_out = os.pipe2(os.O_CLOEXEC)
    conveyor.enlarge(theirs_out, _BUFFER_SIZE)
    agent_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            environment = dict(os.environ)
            environment["QREXEC_AGENT_PID"] = str(agent_pid)
            # Ours are closed first: shells know descriptors below 10 only.
            first, second = sorted((theirs_in.fileno(), theirs_out))
            for start, end in ((3, first), (first + 1, second), (second + 1, _MAX_INHERITED)):
                os.closerange(start, end)
            for fd in (0, 1, 2) if "PASS_LOCAL_STDERR" in os.environ else (0, 1):
                saved = os.dup(fd)
                os.set_inheritable(saved, True)
                environment[f"SAVED_FD_{fd}"] = str(saved)
            os.dup2(theirs_in.fileno(), 0)
            os.dup2(theirs_out, 1)
            for number in (10, 13, 17):
                _signal.signal(number, _signal.SIG_DFL)
            os.execve(words[0], [words[0].rpartition("/")[2], *words[1:]], environment)  # noqa: S606 - no shell
        except OSError as error:
            os.write(2, f"qrexec-client-vm: {words[0]}: {error}\n".encode("utf-8", "replace"))
        finally:
            os._exit(255)
    theirs_in.close()
    os.close(theirs_out)
    os.set_blocking(ours_out, False)
    return pid, ours_in.detach(), ours_out


def _cover_standard_descriptors() -> None:
    """None of 0, 1, 2 is left for something else to get."""
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.close(fd)


def call(options: Options) -> int:
    """Ask, connect, and carry the call to its end. :raise LocalProtocolError, OSError, ValueError:"""
    if options.uses_stdin_socket and not stat.S_ISSOCK(os.fstat(0).st_mode):
        _say("--use-stdin-socket passed, but standard input is not a socket")
        return EXIT_USAGE
    agent = sockets.unix_socket()
    ask(agent, options)
    # The host needs a while to answer: what carrying the call takes is loaded meanwhile.
    from insula_agent.caller import HANDSHAKE_TIMEOUT, Caller, LocalProgram, catch_signals  # noqa: PLC0415
    from insula_agent.sink import Sink  # noqa: PLC0415

    answer = hear(agent)
    if answer is None:
        _say("Request refused")
        return EXIT_REFUSED
    domain, port, channel = answer
    program = None
    source, sink = 0, 0 if options.uses_stdin_socket else 1
    filters_stdout = options.filters_stdout
    if options.program:
        wakeup = catch_signals()
        pid, sink, source = start_program(options.program)
        program = LocalProgram(pid, wakeup)
    elif filters_stdout is None:
        filters_stdout = os.isatty(1)
    filters_stderr = os.isatty(2) if options.filters_stderr is None else options.filters_stderr
    if not channel:
        channel = [serve_vchan(domain, port, HANDSHAKE_TIMEOUT)]
    return Caller(
        (channel[0], channel[-1]),
        source,
        Sink(sink, is_filtered=bool(filters_stdout)),
        Sink(2, is_filtered=filters_stderr),
        options.prefix or b"",
        program,
        agent if len(channel) == 2 else None,
    ).run()


def main(arguments: list[str] | None = None) -> int:
    # Interrupted, it ends as programs do, without a word.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _cover_standard_descriptors()
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        sys.stderr.write(f"qrexec-client-vm: {error}\n{USAGE}")
        return EXIT_USAGE
    if options.wants_help:
        sys.stdout.write(USAGE)
        return 0
    try:
        return call(options)
    except LocalProtocolError as error:
        _say(f"qrexec-client-vm: {error}")
        return EXIT_PROBLEM
    except (OSError, ValueError) as error:
        _say(f"qrexec-client-vm: {error}")
        return EXIT_FAILED
