"""``qrexec-daemon``: one process for each qube, in the background or not, around an :mod:`~insula.qrexec.exchange`."""

from __future__ import annotations

import gc
import getopt
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from insula.qrexec.exchange import CONNECTED, EXIT_FAILED, EXIT_NO_AGENT, TIMED_OUT, Exchange, Qube
from insula.qrexec.log import name_program, say
from insula.qrexec.places import POLICY_PROGRAM, daemon_folder, log_folder
from insula_proto.vchan import MAX_DOMAIN, Place

STARTUP_LIMIT_S = 60

USAGE = """\
Usage: qrexec-daemon [options] DOMID NAME [DEFAULT_USER]

Serves calls to and from one qube over unix-socket vchan (VCHAN_SOCKET_DIR, VCHAN_DOMAIN).

  -u, --uuid=UUID              UUID of the qube; must be given
      --socket-dir=PATH        folder of the daemons' sockets [/var/run/qubes]
  -p, --policy-program=PATH    asked when the policy daemon does not answer [/usr/lib/qubes/qrexec-policy-exec]
  -D, --direct                 do not go to the background, log to stderr
  -q, --quiet                  say nothing while waiting for the agent
  -h, --help                   show this

QREXEC_STARTUP_TIMEOUT: seconds to wait for the agent [60]; QREXEC_STARTUP_NOWAIT: do not wait for it.
"""


_LONG_NAMES = {"-h": "--help", "-q": "--quiet", "-D": "--direct", "-u": "--uuid", "-p": "--policy-program"}


class UsageError(Exception):
    """``str()`` is what was wrong."""


class Options:
    """The command line."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """:raise UsageError:"""
        try:
            options, words = getopt.gnu_getopt(
                list(arguments), "hqp:Du:", ["help", "quiet", "socket-dir=", "policy-program=", "direct", "uuid="]
            )
        except getopt.GetoptError as error:
            raise UsageError(str(error)) from error
        given = {_LONG_NAMES.get(option, option): value for option, value in options}
        self.wants_help = "--help" in given
        self.is_quiet = "--quiet" in given
        self.is_direct = "--direct" in given
        self.socket_folder = given.get("--socket-dir", daemon_folder())
        # The daemon goes to another folder.
        self.policy_program = str(Path(given.get("--policy-program", POLICY_PROGRAM)).absolute())
        self._words = words
        self._uuid = given.get("--uuid", "")

    def qube(self) -> Qube:
        """:raise UsageError:"""
        if len(self._words) not in (2, 3):
            raise UsageError("DOMID and NAME must be given")
        domain, name = self._words[:2]
        if not self._uuid:
            raise UsageError("the qube's UUID must be given (--uuid)")
        if not domain.isascii() or not domain.isdigit() or not 0 < int(domain) <= MAX_DOMAIN:
            raise UsageError(f"not the domain of a qube: {domain}")
        if not name or "/" in name or "/" in self._uuid:
            raise UsageError("not a name or UUID of a qube")
        return Qube(int(domain), name, self._uuid, *self._words[2:])


def startup_limit_s() -> int | None:
    """Seconds to wait for the agent; None: as long as it takes."""
    if "QREXEC_STARTUP_NOWAIT" in os.environ:
        return None
    text = os.environ.get("QREXEC_STARTUP_TIMEOUT", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else STARTUP_LIMIT_S


def main(arguments: Sequence[str] | None = None) -> int:
    name_program("qrexec-daemon")
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
        if options.wants_help:
            print(USAGE, end="")
            return 0
        qube = options.qube()
        place = Place.of(os.environ)
    except (UsageError, ValueError) as error:
        print(f"qrexec-daemon: {error}\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_FAILED
    place = Place(str(Path(place.folder).absolute()), place.own)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_NOCTTY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if options.is_direct:
        return _serve(options, qube, place, lambda _: None)
    return _go_to_background(options, qube, place)


def _go_to_background(options: Options, qube: Qube, place: Place) -> int:
    outcome, announcing = os.pipe()
    if os.fork():
        os.close(announcing)
        return 0 if startup_limit_s() is None else _watch_start(outcome, qube.name, is_quiet=options.is_quiet)
    os.close(outcome)

    def announce(result: bytes) -> None:
        try:
            os.write(announcing, result)
        except BrokenPipeError:
            # With QREXEC_STARTUP_NOWAIT nobody reads it.
            return
        finally:
            os.close(announcing)

    try:
        os.setsid()
        log = os.open(
            f"{log_folder()}/qrexec.{qube.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660
        )
    except OSError as error:
        say(str(error))
        return EXIT_FAILED
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    return _serve(options, qube, place, announce)


def _watch_start(outcome: int, name: str, *, is_quiet: bool) -> int:
    """The process people started: wait for word from the background."""
    if not is_quiet:
        say(f"waiting for the agent of {name}")
    poll = select.poll()
    poll.register(outcome, select.POLLIN)
    while not poll.poll(1000):
        if not is_quiet:
            os.write(2, b".")
    result = os.read(outcome, 1)
    if result == CONNECTED:
        if not is_quiet:
            say("connected")
        return 0
    if result == TIMED_OUT:
        say(f"no agent in {name} for {startup_limit_s()} seconds, giving up")
        return EXIT_NO_AGENT
    say(f"connecting to {name} failed")
    return EXIT_FAILED


def _serve(options: Options, qube: Qube, place: Place, announce: Callable[[bytes], None]) -> int:
    try:
        os.chdir(options.socket_folder)
    except OSError as error:
        say(str(error))
        return EXIT_FAILED
    # What was made so far lives as long as the process: not to be looked at, nor copied by errands for being counted.
    gc.collect()
    gc.freeze()
    try:
        return Exchange(qube, place, options.policy_program, startup_limit_s(), announce).run()
    except OSError as error:
        say(str(error))
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
