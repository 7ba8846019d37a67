"""Invariant: any block gives printable options that the server's list lets through or refuses by OptionRefused, any
frames give bytes for open descriptors; else RemoteProtocolError. Nothing of the server's side is ever named."""

from __future__ import annotations

import harness

from insula_agent.split_gpg import options
from insula_proto import limits, split_gpg
from insula_proto.errors import RemoteProtocolError
from insula_proto.split_gpg import Closed, Data, FrameDecoder

SEEDS = [
    split_gpg.encode_command(["--detach-sign", "-u", "me", "--status-fd=5"]),
    split_gpg.encode_command(["--verify", "/dev/fd/7", "-"]),
    split_gpg.encode_command(["-k", "--list-options", "show-keyring"]),
    split_gpg.encode_command(["--output=/etc/passwd", "--", "-"]),
    split_gpg.encode_command([]) + split_gpg.encode_data(0, b"data") + split_gpg.encode_closed(0),
    split_gpg.encode_data(1, b"x") + split_gpg.encode_exited(0),
]


def fuzz_one(data: bytes) -> None:
    try:
        arguments = split_gpg.decode_command(data[: split_gpg.COMMAND_BLOCK])
        plan = options.plan_server(arguments)
    except (RemoteProtocolError, options.OptionRefused):
        pass
    else:
        assert plan.arguments[: len(options.ENVELOPE)] == list(options.ENVELOPE)
        assert plan.files in ([], ["-"])
        assert len(plan.inputs) <= limits.GPG_MAX_DESCRIPTORS
        assert not set(plan.inputs) & set(plan.outputs)
    for is_client in (False, True):
        decoder = FrameDecoder(2, is_client=is_client)
        closed = set()
        try:
            for piece in harness.pieces(data):
                for frame in decoder.receive(piece):
                    if isinstance(frame, Data):
                        assert frame.index in (0, 1)
                        assert frame.index not in closed
                        assert 0 < len(frame.data) <= limits.GPG_MAX_DATA
                    elif isinstance(frame, Closed):
                        closed.add(frame.index)
                    else:
                        assert is_client
        except RemoteProtocolError:
            continue


if __name__ == "__main__":
    harness.main(fuzz_one, SEEDS)
