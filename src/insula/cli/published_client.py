"""``insula-qrexec-client``: what the published ``qvm-run`` runs for a call from dom0 (admin-api §10).

The published program of that name speaks to a daemon of its own for each qube. Ours takes the same command line and
asks the session process of the qube, as ``insula run`` does: it gets the data channel as a descriptor and is the
caller's end of it (:mod:`insula.qrexec`). It starts nothing: ``qvm-run`` has the qube started before.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from insula.daemon.paths import Paths
from insula.model.errors import QubesValueError
from insula.model.names import parse_qube_name
from insula.qrexec import client, host_service
from insula.qrexec.client import EXIT_USAGE, USAGE, Options, UsageError, be_caller, call_host
from insula.qrexec.errors import QrexecError
from insula.qrexec.log import name_program, say
from insula.qrexec.places import ADMIN_NAMES
from insula.rpc.client import CallRefused, Connection, RpcError, request_when_ready
from insula_proto import limits
from insula_proto.errors import LocalProtocolError, RemoteProtocolError
from insula_proto.qrexec import EXIT_PROBLEM, EXIT_REFUSED, ExecCmdline, JustExec

NAME = "insula-qrexec-client"


async def connect(options: Options, command: bytes, paths: Paths) -> Connection:
    """Ask the qube's session for the call. :raise RpcError: :raise QubesValueError: :raise TimeoutError:"""
    kind = JustExec if options.is_detached else ExecCmdline
    socket_path = paths.rpc_socket(parse_qube_name(options.qube))
    async with asyncio.timeout(options.limit_s or None):
        return await request_when_ready(socket_path, kind(0, 0, command))


def call_qube(options: Options, command: bytes, paths: Paths) -> int:
    """Run a command and be its caller; return its exit code. :raise OSError: and as :func:`connect`"""
    connection = asyncio.run(connect(options, command, paths))
    try:
        started = None if options.program is None else host_service.start(options.program, options.qube)
        return be_caller(options, connection.data, started)
    finally:
        connection.close()


def main(arguments: Sequence[str] | None = None) -> int:
    name_program(NAME)
    try:
        options = Options(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        sys.stderr.write(f"{NAME}: {error}\n\n{USAGE}")
        return EXIT_USAGE
    if options.wants_help:
        sys.stdout.write(USAGE)
        return 0
    command = options.command
    assert command is not None
    if options.request is not None or len(command) > limits.QREXEC_MAX_BODY - 9 or b":" not in command:
        say("requests of qubes are answered by insulad; here it is USER:COMMAND, and not longer than a command may be")
        return EXIT_PROBLEM
    client.fill_standard_descriptors()
    try:
        if options.qube in ADMIN_NAMES:
            return call_host(options, command)
        code = call_qube(options, command, Paths.from_environment(os.environ))
    except host_service.StartFailed as failed:
        say(str(failed))
        code = failed.code
    except CallRefused as error:
        say(str(error))
        code = EXIT_REFUSED
    except (
        RpcError, QrexecError, QubesValueError, OSError, TimeoutError, LocalProtocolError, RemoteProtocolError,
    ) as error:  # fmt: skip
        say(str(error) or "no answer in time")
        code = EXIT_PROBLEM
    return code if options.passes_code else 0


if __name__ == "__main__":
    sys.exit(main())
