"""Names of vchans over unix sockets (reference: vchan, "Unix-socket variant").

A vchan is named by the domain that serves it, the domain that connects, and a port. There is neither handshake nor
framing: the bytes on the socket are the bytes of the vchan. Nothing but the folder's permissions says who may be there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_FOLDER = "/var/run/vchan"
MAX_PATH = 107
"""Bytes of a socket's path, without its NUL (unix(7))."""
MAX_DOMAIN = 0x7FFFFFFF
"""Published daemons hold domains as signed 32-bit numbers."""


class Place:
    """The folder, and which domain this program runs in."""

    __slots__ = ("folder", "own")

    def __init__(self, folder: str = DEFAULT_FOLDER, own: int = 0) -> None:
        self.folder = folder
        self.own = own

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place:
        """As ``VCHAN_SOCKET_DIR`` and ``VCHAN_DOMAIN`` say. :raise ValueError: the latter is no domain."""
        text = environment.get("VCHAN_DOMAIN", "0")
        if not text.isascii() or not text.isdigit() or int(text) > MAX_DOMAIN:
            raise ValueError(f"VCHAN_DOMAIN is no domain: {text!r}")
        return cls(environment.get("VCHAN_SOCKET_DIR", DEFAULT_FOLDER), int(text))

    def served_for(self, client: int, port: int) -> str:
        """Path of the socket we serve. :raise ValueError: too long."""
        return self._path(self.own, client, port)

    def served_by(self, server: int, port: int) -> str:
        """Path of the socket we connect to. :raise ValueError: too long."""
        return self._path(server, self.own, port)

    def _path(self, server: int, client: int, port: int) -> str:
        path = f"{self.folder}/vchan.{server}.{client}.{port}.sock"
        if len(path.encode("utf-8", "surrogateescape")) > MAX_PATH:
            raise ValueError(f"too long for a socket: {path}")
        return path
