"""The control side has no network code (docs/threat-model.md): unix sockets only, and no template build inside."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NETWORK_MODULES = frozenset(
    {"ftplib", "http", "imaplib", "poplib", "smtplib", "socketserver", "ssl", "urllib", "xmlrpc"}
)
NETWORK_NAMES = frozenset(
    {
        *("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"),
        *("create_connection", "create_datagram_endpoint", "create_server", "getaddrinfo", "gethostbyname"),
        *("open_connection", "start_server"),
    }
)
"""Of ``socket`` and ``asyncio``; their unix counterparts have other names."""


def own_modules(entry: str) -> list[Path]:
    """Sources of our modules that ``import entry`` loads, found in a fresh interpreter."""
    code = (
        f"import sys, {entry}\n"
        "for name, module in sorted(sys.modules.items()):\n"
        "    if name.split('.')[0] in ('insula', 'insula_proto', 'insula_agent'): print(module.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return [Path(line) for line in done.stdout.splitlines()]


def network_words(source: str) -> Iterator[str]:
    """What in a module's source could reach a network."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in NETWORK_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in NETWORK_MODULES:
                yield str(node.module)
            yield from (alias.name for alias in node.names if alias.name in NETWORK_NAMES)
        elif isinstance(node, ast.Attribute) and node.attr in NETWORK_NAMES:
            yield node.attr


@pytest.mark.parametrize("entry", ["insula.daemon.insulad", "insula.rpc.session"])
def test_process_of_the_control_side_has_no_network_code(entry: str) -> None:
    sources = own_modules(entry)
    assert len(sources) > 10
    found = {str(path): list(network_words(path.read_text())) for path in sources}
    assert {path: words for path, words in found.items() if words} == {}


def test_daemon_loads_no_template_build() -> None:
    assert [path for path in own_modules("insula.daemon.insulad") if "templates" in path.parent.parts[-1]] == []


@pytest.mark.parametrize(
    "source",
    ["import urllib.request", "from http import client", "from socket import AF_INET", "s = socket.AF_INET6",
     "await asyncio.open_connection('host', 1)"],
)  # fmt: skip
def test_network_code_is_found(source: str) -> None:
    assert list(network_words(source))
