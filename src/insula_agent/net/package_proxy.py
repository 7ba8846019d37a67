"""Tells dnf and pacman their proxy, in templates, and takes that out of what other qubes have of a template's files.

apt asks at each run (``/usr/lib/qubes/apt-proxy``); these two have only a file. A template's own start writes a few
marked lines into it, the start of a qube made from the template removes them again: that one has a network of its own,
or none. What is outside the marks is the user's.

Run by path with ``python3 -I -S`` from insula-package-proxy.service, where there is one of these files.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.abspath(__file__ + "/../../.."))

from insula_agent import files
from insula_agent.log import log

SERVICE = "/run/qubes-service/updates-proxy-setup"
PROXY = "http://127.0.0.1:8082"
"""agent-services §7."""
BEGIN = "# written at each start by insula-package-proxy.service"
END = "# end of what insula-package-proxy.service writes"
CONFIGS = (
    ("/etc/dnf/dnf.conf", "[main]", f"proxy={PROXY}"),
    # By its own downloader pacman knows no proxy but the environment's, which sudo takes away.
    ("/etc/pacman.conf", "[options]", f"XferCommand = /usr/bin/curl --proxy {PROXY} -qgfL -C - --retry 3 -o %o %u"),
)
"""File, section, line."""


def configured(text: str, section: str, line: str | None) -> str:
    """A configuration with that line first in its section, in place of what was written before; None: without one."""
    lines: list[str] = []
    is_ours = False
    for old in text.splitlines():
        if old == BEGIN:
            is_ours = True
        elif old == END:
            is_ours = False
        elif not is_ours:
            lines.append(old)
    if line is not None:
        stripped = [old.strip() for old in lines]
        if section not in stripped:
            lines.append(section)
            stripped.append(section)
        at = stripped.index(section) + 1
        lines[at:at] = [BEGIN, line, END]
    return "".join([f"{kept}\n" for kept in lines])


def configure(path: str, section: str, line: str | None) -> None:
    """:raise OSError: the file is as it was."""
    text = files.read(path)
    wanted = configured(text, section, line)
    if wanted != text:
        new = f"{path}.insula-new"
        files.write(new, wanted, os.stat(path).st_mode & 0o777)
        os.replace(new, path)


def main() -> int:
    is_template = os.path.exists(SERVICE)
    failed = False
    for path, section, line in CONFIGS:
        if os.path.exists(path):
            try:
                configure(path, section, line if is_template else None)
            except OSError as error:
                log(f"package proxy: {error}")
                failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
