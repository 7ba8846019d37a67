"""A connection through a SOCKS 5 proxy (RFC 1928), with a user name (RFC 1929), which ``tor`` keeps circuits apart by.

Names are passed on as they are: nobody here asks for their addresses.
"""

from __future__ import annotations

VERSION = 5
USER_AND_PASSWORD = 2
CONNECT = 1
NAME = 3
MAX_NAME = 255
_ADDRESS_SIZES = {1: 4, 4: 16}
_REFUSALS = {
    1: "it failed", 2: "not allowed", 3: "the network cannot be reached", 4: "the host cannot be reached",
    5: "refused", 6: "it took too long", 7: "not understood", 8: "not an address it knows",
}  # fmt: skip
"""RFC 1928 §6."""


class SocksError(OSError):
    """There is no connection; the message says why."""


class Negotiation:
    """What is said before a connection carries bytes, without I/O: send :attr:`first`, then what :meth:`receive` says.

    It asks for exactly as many bytes as belong to it (:attr:`wanted`); 0: the connection stands.
    """

    def __init__(self, host: str, port: int, user: str) -> None:
        """:raise SocksError: a name that cannot be said."""
        try:
            name, who = host.encode("ascii"), user.encode("ascii")
        except UnicodeEncodeError as error:
            raise SocksError(f"{host[:MAX_NAME]!a} is no name of a host") from error
        if not 0 < len(name) <= MAX_NAME or not 0 < len(who) <= MAX_NAME:
            raise SocksError(f"{host[:MAX_NAME]!a} is no name of a host")
        self.first = bytes((VERSION, 1, USER_AND_PASSWORD))
        self.wanted = 2
        self._login = bytes((1, len(who))) + who + b"\1-"
        self._request = bytes((VERSION, CONNECT, 0, NAME, len(name))) + name + port.to_bytes(2, "big")
        self._step = self._method

    def receive(self, untrusted_data: bytes) -> bytes:
        """The next :attr:`wanted` bytes → what to send. :raise SocksError:"""
        assert len(untrusted_data) == self.wanted
        return self._step(untrusted_data)

    def _method(self, untrusted_data: bytes) -> bytes:
        if untrusted_data != bytes((VERSION, USER_AND_PASSWORD)):
            raise SocksError("the SOCKS proxy wants something else")
        self._step = self._logged_in
        return self._login

    def _logged_in(self, untrusted_data: bytes) -> bytes:
        if untrusted_data[1] != 0:
            raise SocksError("the SOCKS proxy does not take the user name")
        self._step = self._answered
        self.wanted = 5
        return self._request

    def _answered(self, untrusted_data: bytes) -> bytes:
        version, reply, _, kind, first = untrusted_data
        if version != VERSION or reply != 0:
            raise SocksError(f"the SOCKS proxy says: {_REFUSALS.get(reply, 'no')}")
        # Of the address the first byte has come; behind it is a port.
        size = first + 1 if kind == NAME else _ADDRESS_SIZES.get(kind)
        if size is None:
            raise SocksError("the SOCKS proxy answers with an address of no kind")
        self.wanted = size + 1
        self._step = self._connected
        return b""

    def _connected(self, untrusted_data: bytes) -> bytes:
        del untrusted_data
        self.wanted = 0
        return b""
