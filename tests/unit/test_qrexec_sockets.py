from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from insula.qrexec.errors import ChannelTimeout, DaemonAbsent, DaemonError
from insula.qrexec.sockets import DaemonClient, Deadline, ServedVchan, connect_vchan, retry_after, try_vchan


def test_vchan_client_before_its_server_is_connected(tmp_path: Path) -> None:
    path = str(tmp_path / "vchan")
    assert try_vchan(path) is None
    connected: list[socket.socket] = []
    thread = threading.Thread(target=lambda: connected.append(connect_vchan(path, Deadline(20))))
    thread.start()
    served = ServedVchan(path).accept(Deadline(20))
    thread.join()
    served.sendall(b"x")
    assert connected[0].recv(1) == b"x"
    assert not os.path.exists(path), "the name is free for the next server"  # noqa: PTH110 - a text
    served.close()
    connected[0].close()


def test_vchan_old_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "vchan"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert try_vchan(str(path)) is None
    served = ServedVchan(str(path))
    channel = try_vchan(str(path))
    assert channel is not None
    channel.close()
    served.close()


def test_vchan_without_the_other_end_is_given_up_in_time(tmp_path: Path) -> None:
    path = str(tmp_path / "vchan")
    begin = time.monotonic()
    with pytest.raises(ChannelTimeout):
        connect_vchan(path, Deadline(0.2))
    with pytest.raises(ChannelTimeout):
        ServedVchan(path).accept(Deadline(0.2))
    assert 0.4 <= time.monotonic() - begin < 60
    assert not (tmp_path / "vchan").exists()


def test_vchan_in_a_folder_that_cannot_be_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        connect_vchan(str(tmp_path / "file" / "vchan"), Deadline(None))


def test_retries_become_rarer() -> None:
    waits = [retry_after(waited) for waited in (0, 0.05, 0.2, 4.9, 5.1, 1000)]
    assert waits == sorted(waits)
    assert waits[0] <= 0.001
    assert waits[-1] >= 0.05


@pytest.mark.parametrize("seconds", [None, 0])
def test_deadline_without_seconds_never_comes(seconds: float | None) -> None:
    assert Deadline(seconds).left is None
    assert not Deadline(seconds).is_over
    assert Deadline(0.0001).left is not None


@pytest.mark.parametrize("name", ["a/b", "../x", "a" * 200])
def test_daemon_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DaemonError) as refused:
        DaemonClient.connect(str(tmp_path), name)
    assert not isinstance(refused.value, DaemonAbsent)


def test_daemon_that_is_not_there_is_absent(tmp_path: Path) -> None:
    with pytest.raises(DaemonAbsent):
        DaemonClient.connect(str(tmp_path), "work")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "qrexec.work"))
    with pytest.raises(DaemonAbsent):
        DaemonClient.connect(str(tmp_path), "work")
