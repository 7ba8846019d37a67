"""Telling systemd how far we are."""

from __future__ import annotations

import os

from insula_agent.log import log


def notify_systemd(state: str) -> None:
    """sd_notify(3): a datagram to $NOTIFY_SOCKET, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    import _socket  # noqa: PLC0415 - the public module costs an import of enum and selectors

    notifier = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        notifier.sendto(state.encode("ascii"), "\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        log(f"systemd is not listening: {error}")
    finally:
        notifier.close()
