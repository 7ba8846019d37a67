"""Messages of the agent: one line on stderr (the journal under systemd); a fatal one to the kernel log too, which the
host sees on the console even if the guest's journal never starts."""

from __future__ import annotations

import os
import sys


def log(message: str) -> None:
    sys.stderr.write(f"insula-agent: {message}\n")
    sys.stderr.flush()


def fatal(message: str) -> None:
    log(message)
    try:
        kmsg = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(kmsg, f"<3>insula-agent: {message}\n".encode("utf-8", "replace")[:900])
    except OSError as error:
        log(f"cannot write to the kernel log: {error}")
    finally:
        os.close(kmsg)
