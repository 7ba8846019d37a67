"""``qubes-gpg-client``: gpg whose keys are in another qube (agent-services §10).

Takes gpg's options, as far as they may cross qubes, and at most one file, which becomes standard input. The qube is
``QUBES_GPG_DOMAIN``, else what ``/rw/config/gpg-split-domain`` says, else the one policy has for ``@default``.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import files, remote
from insula_agent.split_gpg import options
from insula_agent.split_gpg.exchange import Exchange, PeerGone
from insula_proto import split_gpg
from insula_proto.errors import LocalProtocolError, RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE = "qubes.Gpg"
DOMAIN_VARIABLE = "QUBES_GPG_DOMAIN"
DOMAIN_FILE = "/rw/config/gpg-split-domain"
EXIT_FAILED = 1


def domain(environment: Mapping[str, str], configured: str) -> str:
    """The qube that has the keys. The file comes first, as published: it is this qube's own setting."""
    return configured.strip() or environment.get(DOMAIN_VARIABLE) or "@default"


def _open(path: str) -> int:
    if path == "-":
        return os.dup(options.STDIN)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)


def _send_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def run(arguments: list[str]) -> int:
    """gpg's exit status.

    :raise OptionRefused, LocalProtocolError: before anything was sent. :raise PeerGone, RemoteProtocolError: the server
        ended early, or is none. :raise OSError: a file, or the call cannot be made.
    """
    plan = options.parse(arguments, _open)
    block = split_gpg.encode_command([*plan.arguments, *(["-"] if plan.files else [])])
    if plan.files and plan.files[0] != "-":
        source = _open(plan.files[0])
        os.dup2(source, options.STDIN)
        os.close(source)
    their_input, to_server = os.pipe()
    call = remote.call(domain(os.environ, files.read(DOMAIN_FILE)), SERVICE, their_input)
    os.close(their_input)
    exchange = Exchange((call.output, to_server), plan.inputs, plan.outputs, is_client=True)
    try:
        _send_all(to_server, block)
        exchange.run()
    except BrokenPipeError as error:
        raise PeerGone("the call was refused or has ended") from error
    finally:
        os.close(to_server)
        call.wait()
    assert exchange.status is not None
    return exchange.status


def main(arguments: list[str]) -> int:
    # gpg's own end of standard error may have been closed by the time there is something to say.
    messages = os.dup(2)
    try:
        return run(arguments)
    except (ValueError, LocalProtocolError, RemoteProtocolError, PeerGone, OSError) as error:
        os.write(messages, f"qubes-gpg-client: {error}\n".encode("utf-8", "replace"))
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
