"""A set of SSH keys that a vault offers: its name, its agent, its settings.

``qubes.SshAgent+NAME`` uses the ssh-agent that listens at ``ssh-NAME.sock`` in the user's private folder;
``insula-ssh-add NAME FILE…`` starts it and adds keys to it. Without a name the set is called ``default``.

Settings are in ``~/.config/split-ssh/NAME``, all of them optional, one a line::

    # who may use it at all (whom policy lets call; empty or absent: all of these)
    callers = work personal
    # which keys (absent: all of the agent), and which for one caller in their place
    keys = SHA256:AAAA… SHA256:BBBB…
    keys.personal = SHA256:BBBB…
    # ask before each signature: always, never, or for how many seconds a yes counts (default 300)
    confirm = always
    # an agent elsewhere
    agent = /home/user/.ssh/agent.sock

A line that is not understood makes the whole set unusable: a restriction must not be lost by a slip.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import consent, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_NAME = "default"
DEFAULT_CONFIRM_S = 300
MAX_CONFIRM_S = 7 * 86400
ALWAYS = 0
NEVER = -1
MAX_NAME = 64
FOLDER = ".config/split-ssh"
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_PRINT_LETTERS = _NAME_LETTERS | frozenset("+/:=")
PRINT = "SHA256:"


class KeysetError(ValueError):
    """There is no such set, or its settings are not understood."""


class Settings:
    """What the settings say. ``keys`` None: all; ``callers`` None: whoever policy lets call."""

    __slots__ = ("agent", "callers", "confirm_s", "keys", "keys_of")

    def __init__(self) -> None:
        self.agent = ""
        self.callers: frozenset[str] | None = None
        self.keys: frozenset[str] | None = None
        self.keys_of: dict[str, frozenset[str]] = {}
        self.confirm_s = DEFAULT_CONFIRM_S
        """Seconds a yes counts; :data:`ALWAYS` asks each time, :data:`NEVER` not at all."""

    def allowed(self, caller: str) -> frozenset[str] | None:
        """Fingerprints this caller may see and use; None: all."""
        return self.keys_of.get(caller, self.keys)


def check_name(argument: str) -> str:
    """The name of a set, of a service's argument. :raise KeysetError:"""
    name = argument or DEFAULT_NAME
    if len(name) > MAX_NAME or not _NAME_LETTERS.issuperset(name) or name.startswith("."):
        raise KeysetError(f"not a set of keys: {name!r}")
    return name


def parse(text: str) -> Settings:
    """:raise KeysetError: with the line that is not understood."""
    settings = Settings()
    seen = set()
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = [part.strip() for part in line.partition("=")]
        if not equals or key in seen:
            raise KeysetError(f"not a setting: {line!r}")
        seen.add(key)
        if key == "callers":
            settings.callers = _words(value, _NAME_LETTERS) or None
        elif key == "keys":
            settings.keys = _prints(value)
        elif key.startswith("keys.") and _NAME_LETTERS.issuperset(key) and len(key) > len("keys."):
            settings.keys_of[key[len("keys.") :]] = _prints(value)
        elif key == "confirm":
            settings.confirm_s = _confirm(value)
        elif key == "agent" and value.startswith("/"):
            settings.agent = value
        else:
            raise KeysetError(f"not a setting: {line!r}")
    return settings


def _words(value: str, letters: frozenset[str]) -> frozenset[str]:
    words = frozenset(value.split())
    if not all([letters.issuperset(word) for word in words]):  # noqa: C419 - no generator frames
        raise KeysetError(f"not a list of names: {value!r}")
    return words


def _prints(value: str) -> frozenset[str]:
    prints = _words(value, _PRINT_LETTERS)
    if not all([word.startswith(PRINT) for word in prints]):  # noqa: C419
        raise KeysetError(f"not a list of fingerprints ({PRINT}…): {value!r}")
    return prints


def _confirm(value: str) -> int:
    if value in ("always", "never"):
        return ALWAYS if value == "always" else NEVER
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 0 < int(value) <= MAX_CONFIRM_S):
        raise KeysetError(f"confirm is always, never or 1 to {MAX_CONFIRM_S} seconds, not {value!r}")
    return int(value)


def load(name: str, environment: Mapping[str, str]) -> Settings:
    """The settings of a set, its agent's socket filled in. :raise KeysetError: :raise OSError:"""
    settings = parse(files.read(os.path.join(environment.get("HOME", "/"), FOLDER, name)))
    if not settings.agent:
        settings.agent = socket_path(name, environment)
    return settings


def socket_path(name: str, environment: Mapping[str, str]) -> str:
    return f"{consent.private_folder(environment)}/ssh-{name}.sock"


def main(arguments: list[str]) -> int:
    """``insula-ssh-add NAME [ssh-add's arguments]``: have an agent for the set, then become ssh-add."""
    import socket  # noqa: PLC0415 - of no use to the service
    import subprocess  # noqa: PLC0415

    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write("usage: insula-ssh-add NAME [FILE…, or what else ssh-add takes]\n")
        return 2
    try:
        name = check_name(arguments[0])
        path = load(name, os.environ).agent
        # One at a time: of two that find no agent, the second would find the name taken, or take it from the first.
        held = consent.lock(f"{socket_path(name, os.environ)}.lock")
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(path)
        except FileNotFoundError:
            subprocess.run(["ssh-agent", "-a", path], stdout=subprocess.DEVNULL, check=True)
        except ConnectionRefusedError:
            # Its agent was killed and left the name behind.
            os.unlink(path)
            subprocess.run(["ssh-agent", "-a", path], stdout=subprocess.DEVNULL, check=True)
        finally:
            probe.close()
            os.close(held)
        os.environ["SSH_AUTH_SOCK"] = path
        os.execvp("ssh-add", ["ssh-add", *arguments[1:]])  # noqa: S606 - a vector, no shell
    except (KeysetError, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"insula-ssh-add: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
