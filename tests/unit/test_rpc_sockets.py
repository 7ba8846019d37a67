from __future__ import annotations

import socket
from pathlib import Path

import pytest

from insula.rpc.sockets import MAX_ADDRESS, address


@pytest.mark.parametrize("depth", [0, 12])
def test_address_of_any_length_binds_and_connects(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["a-long-folder-name"] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rpc.sock"
    assert (len(str(path)) > MAX_ADDRESS) == bool(depth)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        with address(path) as where:
            listener.bind(where)
        listener.listen()
        with address(path) as where:
            client.connect(where)
    assert path.is_socket()


def test_address_in_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), address(tmp_path / ("x" * 120) / "rpc.sock"):
        pass
