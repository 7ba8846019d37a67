"""``qrexec-client``: run a command or service in a qube, or join two ends (reference: qrexec, §4).

Three things it does: *call* a qube, and be the caller's end of the data channel; *connect* two qubes, or a qube and
the host, for a request that waits (``-c``); *replace itself* by a service of the host, if the host calls itself.
"""

from __future__ import annotations

import getopt
import os
import socket
import stat
import sys
from collections.abc import Sequence
from typing import NoReturn

from insula.qrexec import errand, host_service, qubesd
from insula.qrexec.descriptors import Local, Modes, Outlet
from insula.qrexec.errors import QrexecError
from insula.qrexec.log import name_program, say
from insula.qrexec.places import ADMIN_NAMES, daemon_folder
from insula.qrexec.relay import CallerRelay
from insula.qrexec.sockets import DaemonClient, Deadline, ServedVchan, handshake
from insula_proto import limits, qrexec
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import EXIT_PROBLEM, ExecCmdline, JustExec
from insula_proto.qrexec_channel import CallerEnd
from insula_proto.vchan import MAX_DOMAIN, Place

CONNECT_LIMIT_S = 10
HELLO_LIMIT_S = 60.0
EXIT_USAGE = 1
EXIT_NOT_CONNECTED = 137
"""Two qubes could not be joined. As published."""
MAX_IDENT = 31
_DEFAULT_USER = b"DEFAULT:"

USAGE = """\
Usage: qrexec-client [options] -d NAME USER:COMMAND

Runs COMMAND in the qube NAME (a name, a domain or uuid:UUID), or 'QUBESRPC SERVICE SOURCE' as a service; DEFAULT is the
qube's default user. For dom0 it is a service of the host.

  -l PROGRAM                       connect PROGRAM instead of stdin and stdout
  -e                               do not connect to it, do not wait for it
  -c IDENT,NAME,DOMAIN             connect it to this waiting request of another qube
  -E, --no-exit-code               exit with 0 whatever it exits with
  -t, -T                           replace bytes in stdout, in stderr, that a terminal would act on
  -w SECONDS                       wait this long for the connection [10]; 0: for ever
  -W                               with -c, wait for the end of the connection
  -k                               kill the qube before exiting
  -p DATA, --prefix-data=DATA      send DATA before stdin
      --use-stdin-socket           stdin is a socket, and stdout too
      --socket-dir=PATH            folder of the daemons' sockets [/var/run/qubes]
  -h, --help                       show this

Exits with the exit code of COMMAND; 125: qrexec failed; 126: refused; 127: no such service; 255: connection lost.
"""


class UsageError(Exception):
    """``str()`` is what was wrong."""


class Request:
    """``-c``: a request that waits in another qube."""

    def __init__(self, text: str) -> None:
        """:raise UsageError:"""
        words = text.split(",")
        if len(words) != 3 or not words[0] or len(words[0]) > MAX_IDENT:
            raise UsageError(f"not IDENT,NAME,DOMAIN: {text}")
        self.ident = words[0].encode("utf-8", "surrogateescape")
        self.name = words[1]
        self.domain = _number(words[2], "domain")
        if self.name in ADMIN_NAMES or self.domain == 0:
            raise UsageError("-c is for requests of qubes")


class Options:
    """The command line."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """:raise UsageError:"""
        try:
            given, words = getopt.gnu_getopt(
                list(arguments),
                "hd:l:eEc:p:tTw:Wk",
                ["help", "socket-dir=", "no-exit-code", "prefix-data=", "use-stdin-socket"],
            )
        except getopt.GetoptError as error:
            raise UsageError(str(error)) from error
        names = [name for name, _ in given]
        for name in ("-c", "-p"):
            if names.count(name) > 1:
                raise UsageError(f"{name} is given twice")
        values = dict(given)
        self.wants_help = "-h" in values or "--help" in values
        self.program = _bytes(values.get("-l"))
        self.is_detached = "-e" in values
        self.request = Request(values["-c"]) if "-c" in values else None
        self.passes_code = "-E" not in values and "--no-exit-code" not in values
        self.cleans_stdout = "-t" in values
        self.cleans_stderr = "-T" in values
        self.limit_s = _number(values["-w"], "time limit") if "-w" in values else CONNECT_LIMIT_S
        self.waits_for_end = "-W" in values
        self.kills = "-k" in values
        self.prefix = _bytes(values.get("-p", values.get("--prefix-data"))) or b""
        self.uses_stdin_socket = "--use-stdin-socket" in values
        self.socket_folder = values.get("--socket-dir", daemon_folder())
        self.qube = values.get("-d", "")
        self.command = _bytes(words[0]) if words else None
        if not self.wants_help:
            self._check()

    def _check(self) -> None:
        if not self.qube or self.command is None:
            raise UsageError("a qube and a command must be given")
        if self.is_detached + (self.request is not None) + (self.program is not None) > 1:
            raise UsageError("only one of -e, -l and -c can be given")
        if self.uses_stdin_socket:
            if self.program is not None:
                raise UsageError("only one of -l and --use-stdin-socket can be given")
            if not stat.S_ISSOCK(os.fstat(0).st_mode):
                raise UsageError("--use-stdin-socket: stdin is no socket")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MAX_DOMAIN:
        raise UsageError(f"not a {what}: {text}")
    return int(text)


# --- what it does --------------------------------------------------------------------------------------------------


def call_qube(options: Options, command: bytes, place: Place) -> int:
    """Run a command and be its caller; return its exit code.

    :raise QrexecError: :raise RemoteProtocolError: :raise OSError:
    """
    daemon = DaemonClient.connect(options.socket_folder, options.qube)
    if options.is_detached:
        domain, port = daemon.ask(JustExec(0, 0, command))
    else:
        domain, port = daemon.ask(ExecCmdline(0, 0, command))
    served = ServedVchan(place.served_for(domain, port))
    try:
        started = None if options.program is None else host_service.start(options.program, options.qube)
        deadline = Deadline(options.limit_s)
        channel = served.accept(deadline)
    finally:
        served.close()
    return be_caller(options, channel, started)


def be_caller(options: Options, channel: socket.socket, started: host_service.Started | None) -> int:
    """Be the caller's end of a data channel, to its end; return the exit code. ``started``: what ``-l`` names.

    :raise QrexecError: :raise RemoteProtocolError: :raise OSError:
    """
    end = CallerEnd(oldest=qrexec.OLDEST_VERSION)
    early = handshake(channel, end.hello(), end.receive, Deadline(HELLO_LIMIT_S))
    with Modes() as modes:
        if started is None:
            inlet, output = _standard_streams(options, modes)
        else:
            inlet, output = started.inlet, started.output
        errors = Outlet(Local.kept(2), is_cleaned=options.cleans_stderr)
        relay = CallerRelay(channel, end, inlet, output, errors)
        if started is not None and started.pid:
            relay.adopt(started.pid)
        return relay.run(early, options.prefix)


def _standard_streams(options: Options, modes: Modes) -> tuple[Local, Outlet]:
    if options.uses_stdin_socket:
        reading, writing = Local.halves(socket.socket(fileno=os.dup(0)))
        return reading, Outlet(writing, is_cleaned=options.cleans_stdout)
    return Local.inherited(0, modes), Outlet(Local.inherited(1, modes), is_cleaned=options.cleans_stdout)


def connect_qubes(options: Options, command: bytes, request: Request, place: Place) -> int:
    """Have a command run for a request that waits in another qube, and tell both. :raise QrexecError:"""
    caller = errand.Caller(request.domain, request.name, request.ident, options.socket_folder, place)
    target = errand.open_qube(options.socket_folder, options.qube, autostart=False)
    source = DaemonClient.connect(options.socket_folder, str(request.domain))
    errand.join(source, target, caller, ExecCmdline(request.domain, 0, command))
    source.close()
    if options.waits_for_end:
        target.wait_for_end()
    return 0


def serve_qube(options: Options, command: bytes, request: Request, place: Place) -> int:
    """Run a command of the host for a request that waits in a qube; return its exit code.

    :raise QrexecError: :raise RemoteProtocolError: :raise OSError:
    """
    caller = errand.Caller(request.domain, request.name, request.ident, options.socket_folder, place)
    daemon = DaemonClient.connect(options.socket_folder, str(request.domain))
    return errand.serve_here(daemon, caller, command, request.name, options.limit_s)


def call_host(options: Options, command: bytes) -> NoReturn:
    """Become a service of the host. :raise StartFailed: this is still the same program."""
    if options.program is not None:
        raise host_service.StartFailed("calls from the host to the host take no -l", EXIT_PROBLEM)
    if not command.startswith(_DEFAULT_USER):
        raise host_service.StartFailed("the user of a call from the host to the host is DEFAULT", EXIT_PROBLEM)
    host_service.replace_process(command[len(_DEFAULT_USER) :])


# --- the process ---------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    name_program("qrexec-client")
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
        place = Place.of(os.environ)
    except (UsageError, ValueError) as error:
        print(f"qrexec-client: {error}\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_USAGE
    if options.wants_help:
        print(USAGE, end="")
        return 0
    assert options.command is not None
    if len(options.command) > limits.QREXEC_MAX_BODY:
        say("the command is too long")
        return EXIT_PROBLEM
    fill_standard_descriptors()
    try:
        code = _run(options, options.command, place)
    except host_service.StartFailed as failed:
        say(str(failed))
        code = failed.code
    except (QrexecError, OSError, ValueError, LocalProtocolError, RemoteProtocolError) as error:
        say(str(error))
        code = EXIT_NOT_CONNECTED if _joins_qubes(options) else EXIT_PROBLEM
    if options.kills:
        try:
            qubesd.kill(options.qube)
        except QrexecError as error:
            say(str(error))
    return code


def _run(options: Options, command: bytes, place: Place) -> int:
    is_for_host = options.qube in ADMIN_NAMES
    if options.request is None:
        if is_for_host:
            call_host(options, command)
        code = call_qube(options, command, place)
    elif is_for_host:
        code = serve_qube(options, command, options.request, place)
    else:
        return connect_qubes(options, command, options.request, place)
    return code if options.passes_code else 0


def _joins_qubes(options: Options) -> bool:
    return options.request is not None and options.qube not in ADMIN_NAMES


def fill_standard_descriptors() -> None:
    """None of 0, 1 and 2 is free, so that nothing else gets their number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
