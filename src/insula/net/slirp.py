"""libslirp (the user-mode network of QEMU and others) as an object: frames in, frames out, sockets to be polled.

Only what one cable needs of it. What it could do besides is switched off: DHCP, TFTP, boot files, IPv6, emulation of
old protocols, the host's loopback.

Source: libslirp 4.7 ``src/libslirp.h``. Structures are those of version 4 of its configuration.
"""

from __future__ import annotations

import ctypes
import select
import socket
import time
from collections.abc import Callable
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_void_p,
)

from insula.model.uplink import OUTSIDE_ADDRESS, OUTSIDE_DNS, OUTSIDE_GATEWAY, OUTSIDE_NETMASK

LIBRARY = "libslirp.so.0"
PACKAGE = "libslirp0"
"""Debian's package of it; QEMU's depends on it."""
MTU = 1500
_CONFIG_VERSION = 4

_POLL_IN, _POLL_OUT, _POLL_PRI, _POLL_ERR, _POLL_HUP = 1, 2, 4, 8, 16
_TO_POLL = tuple(
    (select.POLLIN if flags & _POLL_IN else 0)
    | (select.POLLOUT if flags & _POLL_OUT else 0)
    | (select.POLLPRI if flags & _POLL_PRI else 0)
    for flags in range(32)
)
"""poll(2)'s flags for libslirp's. Errors and ends are always reported."""


def _from_poll(events: int) -> int:
    return (
        (_POLL_IN if events & select.POLLIN else 0)
        | (_POLL_OUT if events & select.POLLOUT else 0)
        | (_POLL_PRI if events & select.POLLPRI else 0)
        | (_POLL_ERR if events & (select.POLLERR | select.POLLNVAL) else 0)
        | (_POLL_HUP if events & select.POLLHUP else 0)
    )


class _InAddr(Structure):
    _fields_ = (("s_addr", c_uint32),)


class _In6Addr(Structure):
    _fields_ = (("s6_addr", c_uint32 * 4),)


_SendPacket = CFUNCTYPE(c_ssize_t, c_void_p, c_size_t, c_void_p)
_GuestError = CFUNCTYPE(None, c_char_p, c_void_p)
_Clock = CFUNCTYPE(c_int64, c_void_p)
_TimerNew = CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p)
_TimerFree = CFUNCTYPE(None, c_void_p, c_void_p)
_TimerMod = CFUNCTYPE(None, c_void_p, c_int64, c_void_p)
_PollFd = CFUNCTYPE(None, c_int, c_void_p)
_Notify = CFUNCTYPE(None, c_void_p)
_AddPoll = CFUNCTYPE(c_int, c_int, c_int, c_void_p)
_GetEvents = CFUNCTYPE(c_int, c_int, c_void_p)


class _Callbacks(Structure):
    """``SlirpCb``"""

    _fields_ = (
        ("send_packet", _SendPacket),
        ("guest_error", _GuestError),
        ("clock_get_ns", _Clock),
        ("timer_new", _TimerNew),
        ("timer_free", _TimerFree),
        ("timer_mod", _TimerMod),
        ("register_poll_fd", _PollFd),
        ("unregister_poll_fd", _PollFd),
        ("notify", _Notify),
        ("init_completed", c_void_p),
        ("timer_new_opaque", c_void_p),
    )


class _Config(Structure):
    """``SlirpConfig``"""

    _fields_ = (
        ("version", c_uint32),
        ("restricted", c_int),
        ("in_enabled", c_bool),
        ("vnetwork", _InAddr),
        ("vnetmask", _InAddr),
        ("vhost", _InAddr),
        ("in6_enabled", c_bool),
        ("vprefix_addr6", _In6Addr),
        ("vprefix_len", c_uint8),
        ("vhost6", _In6Addr),
        ("vhostname", c_char_p),
        ("tftp_server_name", c_char_p),
        ("tftp_path", c_char_p),
        ("bootfile", c_char_p),
        ("vdhcp_start", _InAddr),
        ("vnameserver", _InAddr),
        ("vnameserver6", _In6Addr),
        ("vdnssearch", c_void_p),
        ("vdomainname", c_char_p),
        ("if_mtu", c_size_t),
        ("if_mru", c_size_t),
        ("disable_host_loopback", c_bool),
        ("enable_emu", c_bool),
        ("outbound_addr", c_void_p),
        ("outbound_addr6", c_void_p),
        ("disable_dns", c_bool),
        ("disable_dhcp", c_bool),
    )


def _in_addr(text: str) -> _InAddr:
    return _InAddr.from_buffer_copy(socket.inet_aton(text))


def _config() -> _Config:
    return _Config(
        version=_CONFIG_VERSION,
        in_enabled=True,
        vnetwork=_in_addr(str(OUTSIDE_GATEWAY.rpartition(".")[0]) + ".0"),
        vnetmask=_in_addr(OUTSIDE_NETMASK),
        vhost=_in_addr(OUTSIDE_GATEWAY),
        vdhcp_start=_in_addr(OUTSIDE_ADDRESS),
        vnameserver=_in_addr(OUTSIDE_DNS),
        if_mtu=MTU,
        if_mru=MTU,
        disable_host_loopback=True,
        disable_dhcp=True,
    )


def load() -> ctypes.CDLL:
    """:raise OSError: the library is not there, or is too old."""
    library = ctypes.CDLL(LIBRARY)
    library.slirp_new.argtypes = (POINTER(_Config), POINTER(_Callbacks), c_void_p)
    library.slirp_new.restype = c_void_p
    library.slirp_input.argtypes = (c_void_p, c_char_p, c_int)
    library.slirp_input.restype = None
    library.slirp_pollfds_fill.argtypes = (c_void_p, POINTER(c_uint32), _AddPoll, c_void_p)
    library.slirp_pollfds_fill.restype = None
    library.slirp_pollfds_poll.argtypes = (c_void_p, c_int, _GetEvents, c_void_p)
    library.slirp_pollfds_poll.restype = None
    return library


class Slirp:
    """One network with one guest in it. ``send`` is called with each frame for the guest; it must keep or drop it."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        """:raise OSError: no library that can be used."""
        self._library = load()
        self._send = send
        self._descriptors: list[tuple[int, int]] = []
        self._events: dict[int, int] = {}
        # Kept here: the library has only their addresses.
        self._config = _config()
        self._callbacks = _Callbacks(
            send_packet=_SendPacket(self._send_packet),
            guest_error=_GuestError(lambda _message, _opaque: None),
            clock_get_ns=_Clock(lambda _opaque: time.monotonic_ns()),
            # (Timers are for router advertisements, of which there are none.)
            timer_new=_TimerNew(lambda _callback, _its, _opaque: None),
            timer_free=_TimerFree(lambda _timer, _opaque: None),
            timer_mod=_TimerMod(lambda _timer, _expire_ms, _opaque: None),
            register_poll_fd=_PollFd(lambda _fd, _opaque: None),
            unregister_poll_fd=_PollFd(lambda _fd, _opaque: None),
            notify=_Notify(lambda _opaque: None),
        )
        self._add_poll = _AddPoll(self._add)
        self._get_events = _GetEvents(self._event_of)
        self._slirp = self._library.slirp_new(ctypes.byref(self._config), ctypes.byref(self._callbacks), None)
        if not self._slirp:
            raise OSError(f"{LIBRARY} is older than 4.7")

    def _send_packet(self, buffer: int, size: int, _opaque: int | None) -> int:
        self._send(ctypes.string_at(buffer, size))
        return size

    def _add(self, fd: int, flags: int, _opaque: int | None) -> int:
        self._descriptors.append((fd, _TO_POLL[flags & 31]))
        return fd

    def _event_of(self, index: int, _opaque: int | None) -> int:
        return _from_poll(self._events.get(index, 0))

    def input(self, frame: bytes) -> None:
        """A frame of the guest."""
        self._library.slirp_input(self._slirp, frame, len(frame))

    def descriptors(self, timeout_ms: int) -> tuple[list[tuple[int, int]], int]:
        """What to wait for now (descriptor, flags of poll(2)), and how long, at most ``timeout_ms``."""
        timeout = c_uint32(timeout_ms)
        self._descriptors = []
        self._library.slirp_pollfds_fill(self._slirp, ctypes.byref(timeout), self._add_poll, None)
        return self._descriptors, timeout.value

    def turn(self, events: dict[int, int]) -> None:
        """After the wait: what has happened to which of the descriptors that :meth:`descriptors` told."""
        self._events = events
        self._library.slirp_pollfds_poll(self._slirp, 0, self._get_events, None)
