"""``qrexec-agent``: the agent without a machine around it, over vchans of unix sockets (reference: qrexec, §4; vchan).

The same control channel, calls and requests as in a qube (:mod:`insula_agent.commands`); there are no keys and no
identity. Whoever may use the folder of the vchans is believed to be who their names say.
"""

from __future__ import annotations

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]
import os
import sys

from insula_agent import fork_server, notification, requests
from insula_agent.commands import Commands
from insula_agent.log import log
from insula_agent.loop import Loop
from insula_agent.plans import Configuration
from insula_agent.vchan_link import VchanLink
from insula_proto import services
from insula_proto.vchan import Place

SIGTERM = 15
EXIT_USAGE = 2
USAGE = """usage: qrexec-agent [OPTIONS]

Run commands and services for other domains, and let local programs ask for services of theirs, over vchans that are
unix sockets in $VCHAN_SOCKET_DIR (default /var/run/vchan); $VCHAN_DOMAIN is this domain's number (default 0).

  -a, --agent-socket=PATH        where programs ask for services (default %s)
  -s, --fork-server-socket=PATH  where a user's session runs commands itself; %%s is the user's name, empty is nowhere
                                 (default %s)
  -S, --no-fork-server           the same as an empty path
  -h, --help                     show this
""" % (requests.DEFAULT_SOCKET, fork_server.DEFAULT_SOCKET)


class Options:
    __slots__ = ("agent_socket", "fork_server", "wants_help")

    def __init__(self) -> None:
        self.agent_socket = requests.DEFAULT_SOCKET
        self.fork_server = fork_server.DEFAULT_SOCKET
        self.wants_help = False


def parse_options(arguments: list[str]) -> Options | None:
    """Return the options; None if they are not understood. (``argparse`` costs more to import than it saves.)"""
    options = Options()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
        if name in ("-S", "--no-fork-server") and not equals:
            options.fork_server = ""
            continue
        if name in ("-h", "--help") and not equals:
            options.wants_help = True
            continue
        if name not in ("-a", "--agent-socket", "-s", "--fork-server-socket"):
            return None
        if not equals:
            if not rest:
                return None
            value = rest.pop(0)
        if name in ("-a", "--agent-socket"):
            options.agent_socket = value
        else:
            options.fork_server = value
    return options


class Agent:
    def __init__(self, options: Options, place: Place) -> None:
        self.loop = Loop()
        self.link = VchanLink(self.loop, place, self._connected)
        configuration = Configuration(
            os.environ.get("QREXEC_SERVICE_PATH", services.DEFAULT_SERVICE_PATH),
            os.environ.get("QUBES_RPC_CONFIG_PATH", services.DEFAULT_CONFIG_PATH),
            options.agent_socket,
            options.fork_server,
            may_switch=os.geteuid() == 0,
        )
        self.commands = Commands(self.loop, self.link, configuration, self._ready)
        self.commands.requests.allow()

    def _connected(self) -> None:
        self.commands.start()

    def _ready(self, version: int) -> None:
        log(f"ready, qrexec version {version}")
        notification.notify_systemd("READY=1")

    def run(self) -> int:
        """:raise OSError, ValueError: a socket cannot be made."""
        try:
            self.commands.requests.listen()
            self.link.start()
            return self.loop.run()
        finally:
            self.commands.kill_all()
            self.commands.requests.close()
            self.link.close()


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise SystemExit(0)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    if options is None or options.wants_help:
        (sys.stderr if options is None else sys.stdout).write(USAGE)
        return EXIT_USAGE if options is None else 0
    _signal.signal(SIGTERM, _terminate)
    try:
        return Agent(options, Place.of(os.environ)).run()
    except (OSError, ValueError) as error:
        log(str(error))
        return 1
