"""``qubes.Gpg``: gpg's work for another qube, with the keys of this one (agent-services §10).

In order: the options are read and checked; whoever sits here is asked, unless a yes is remembered; gpg runs, its
descriptors joined to the caller's. Refused options reach neither the person nor gpg.
"""

from __future__ import annotations

import fcntl
import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import consent, programs
from insula_agent.split_gpg import options
from insula_agent.split_gpg.exchange import Exchange, PeerGone
from insula_proto import split_gpg
from insula_proto.errors import RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GPG = "gpg"
USE = "gpg"
AUTOACCEPT_VARIABLE = "QUBES_GPG_AUTOACCEPT"
DEFAULT_AUTOACCEPT_S = 300
"""Seconds for which a yes is remembered (published)."""
MAX_AUTOACCEPT_S = 7 * 86400
EXIT_REFUSED = 1
EXEC_FAILED = 127
_SIGTERM = 15


def autoaccept(environment: Mapping[str, str]) -> int:
    """Seconds a yes is remembered; what is set and makes no sense remembers nothing."""
    text = environment.get(AUTOACCEPT_VARIABLE, "")
    if not text:
        return DEFAULT_AUTOACCEPT_S
    return min(int(text), MAX_AUTOACCEPT_S) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def question(source: str, seconds: int) -> str:
    lasting = f"now and for the next {seconds} seconds" if seconds else "this once"
    return f"Do you allow the qube {source} to use your GPG keys, {lasting}?"


def read_command(channel: int) -> list[str]:
    """The first block of the call. :raise RemoteProtocolError:"""
    untrusted_block = b""
    while len(untrusted_block) < split_gpg.COMMAND_BLOCK:
        piece = os.read(channel, split_gpg.COMMAND_BLOCK - len(untrusted_block))
        if not piece:
            break
        untrusted_block += piece
    return split_gpg.decode_command(untrusted_block)


def _run(argv: Sequence[str], joined: Sequence[tuple[int, int]]) -> int:
    """Start gpg with descriptors (ours, the number it knows it by); its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        # Out of the way of the numbers first: one of ours may be another's place.
        above = max([number for _, number in joined]) + 1
        copies = [(fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above), number) for ours, number in joined]
        for copy, number in copies:
            os.dup2(copy, number)
        programs.become(argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error}\n".encode("utf-8", "replace"))
    finally:
        os._exit(EXEC_FAILED)


def serve(plan: options.Plan, channel: tuple[int, int]) -> int:
    """Run gpg, joined to the channel; its status. :raise PeerGone, RemoteProtocolError: it was ended."""
    inputs = [(os.pipe(), number) for number in plan.inputs]
    outputs = [(os.pipe(), number) for number in plan.outputs]
    theirs = [(ends[0], number) for ends, number in inputs] + [(ends[1], number) for ends, number in outputs]
    pid = _run([GPG, *plan.arguments], theirs)
    for fd, _ in theirs:
        os.close(fd)
    exchange = Exchange(channel, [ends[0] for ends, _ in outputs], [ends[1] for ends, _ in inputs], is_client=False)
    is_done = False
    try:
        exchange.run()
        is_done = True
    finally:
        exchange.close()
        if not is_done:
            os.kill(pid, _SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = code if code >= 0 else 128 - code
    exchange.send_status(status)
    return status


def main() -> int:
    try:
        source = consent.check_source(os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
        plan = options.plan_server(read_command(0))
        seconds = autoaccept(os.environ)
        if not consent.ask_or_remember(USE, source, question(source, seconds), seconds, os.environ):
            sys.stderr.write("not allowed\n")
            return EXIT_REFUSED
        serve(plan, (0, 1))
    except (ValueError, consent.NobodyToAsk, PeerGone, RemoteProtocolError, OSError) as error:
        sys.stderr.write(f"split GPG: {error}\n")
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
