"""Finding the byte channel's device without udev."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula_agent.boot import find_device


def test_port_is_found_by_its_name(tmp_path: Path) -> None:
    for port, name in (("vport1p1", "insula.gui"), ("vport1p2", "insula.rpc")):
        (tmp_path / port).mkdir()
        (tmp_path / port / "name").write_text(name + "\n")
    assert find_device("insula.rpc", str(tmp_path)) == "/dev/vport1p2"


def test_absent_port_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"insula\.rpc"):
        find_device("insula.rpc", str(tmp_path))
