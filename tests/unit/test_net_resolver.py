"""The host's name server, as its file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from insula.net.resolver import first_server, host_server


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("nameserver 192.0.2.53\n", "192.0.2.53"),
        ("# nameserver 192.0.2.1\nsearch example.org\n\tnameserver\t192.0.2.53 # ours\n", "192.0.2.53"),
        ("nameserver 2001:db8::53\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n", "192.0.2.53"),
        ("nameserver\nnameserver 192.0.2.053\nnameserver x\n", None),
        ("", None),
    ],
)
def test_first_one_with_an_ipv4_address(text: str, server: str | None) -> None:
    assert first_server(text) == server


def test_file_that_is_not_there_names_none(tmp_path: Path) -> None:
    assert host_server(tmp_path / "resolv.conf") is None


def test_bytes_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(b"\xff\xfe\nnameserver 192.0.2.53\n")
    assert host_server(path) == "192.0.2.53"
