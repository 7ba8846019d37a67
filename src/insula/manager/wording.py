"""What a call means, in words. Pure.

The name of a service says little to most people. Where it is known, a question says what the call does, and what it
would give away if that is more than it looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from insula.policy.agent import Question
from insula_proto import vmexec
from insula_proto.errors import RemoteProtocolError

MAX_SHOWN = 240
"""Characters of an argument that are shown; its end is, too, so that nothing is hidden there."""
SHOWN_END = 60

_DISPVM_OF = "@dispvm:"
_COMMAND_SERVICES = frozenset({"qubes.VMExec", "qubes.VMExecGUI"})
_CONTROL = "Whoever may do this controls that qube, and all that is in it."
_ADMIN = "This changes the system itself, not only a qube."
_INPUT = "Whoever types for you can do whatever you can."

_PURPOSES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "qubes.Filecopy": ("copy files to another qube", ""),
        "qubes.OpenInVM": ("open a file in another qube", ""),
        "qubes.OpenURL": ("open a link in another qube", ""),
        "qubes.Gpg": ("sign or decrypt with keys of another qube", ""),
        "qubes.Gpg2": ("sign or decrypt with keys of another qube", ""),
        "qubes.SshAgent": ("log in somewhere with SSH keys of another qube", ""),
        "qubes.VMShell": ("run commands of its choice in another qube", _CONTROL),
        "qubes.VMRootShell": ("run commands of its choice as root in another qube", _CONTROL),
        "qubes.VMExec": ("run a command in another qube", _CONTROL),
        "qubes.VMExecGUI": ("run a program in another qube", _CONTROL),
        "qubes.StartApp": ("start an application in another qube", ""),
        "qubes.GetAppmenus": ("learn which applications another qube has", ""),
        "qubes.ConnectTCP": ("connect to a network port of another qube", ""),
        "qubes.UpdatesProxy": ("reach the network through another qube, for updates", ""),
        "qubes.GetDate": ("learn what time it is in another qube", ""),
        "qubes.GetRandomizedTime": ("learn what time it is in another qube", ""),
        "qubes.PdfConvert": ("have a PDF made safe in another qube", ""),
        "qubes.GetImageRGBA": ("have a picture made safe in another qube", ""),
        "qubes.ClipboardPaste": ("paste the clipboard into another qube", ""),
        "qubes.NotifyUpdates": ("tell that it has updates", ""),
        "qubes.FeaturesRequest": ("tell what it supports", ""),
        "insula.Notify": ("tell you something", ""),
        "qubes.Backup": ("write a backup to another qube", ""),
        "qubes.Restore": ("read a backup from another qube", ""),
        "qubes.USB": ("use a USB device of another qube", ""),
        "qubes.InputMouse": ("move the pointer and click for you", _INPUT),
        "qubes.InputKeyboard": ("type for you", _INPUT),
        "qubes.InputTablet": ("point and click for you", _INPUT),
    }
)
_PREFIXES: tuple[tuple[str, str, str], ...] = (
    ("admin.", "administer this system", _ADMIN),
    ("policy.", "read or change the rules for calls between qubes", _ADMIN),
)


@dataclass(frozen=True)
class Purpose:
    """What the source asks to do: an infinitive, and what it would give away, a sentence or nothing."""

    text: str
    risk: str = ""


def purpose_of(service: str) -> Purpose:
    if service in _PURPOSES:
        return Purpose(*_PURPOSES[service])
    for prefix, text, risk in _PREFIXES:
        if service.startswith(prefix):
            return Purpose(text, risk)
    return Purpose("use a service of another qube")


def command_of(question: Question) -> str | None:
    """The command that a ``qubes.VMExec`` would run, as printable ASCII; None: it names none."""
    if question.service not in _COMMAND_SERVICES:
        return None
    try:
        words = vmexec.decode(question.argument.removeprefix("+").encode("ascii"))
    except RemoteProtocolError:
        return None
    # What is not ASCII is shown as numbers: letters that look like others would make another command of it.
    return " ".join(ascii(word.decode("utf-8", "backslashreplace")) for word in words)


def shown_argument(argument: str) -> str:
    """Without its ``+``; a long one without its middle."""
    text = argument.removeprefix("+")
    return shortened(text)


def shortened(text: str) -> str:
    if len(text) <= MAX_SHOWN:
        return text
    left_out = len(text) - MAX_SHOWN
    return f"{text[: MAX_SHOWN - SHOWN_END]} […{left_out} more characters…] {text[-SHOWN_END:]}"


def target_title(target: str) -> str:
    if target.startswith(_DISPVM_OF):
        return f"a new disposable of {target.removeprefix(_DISPVM_OF)}"
    return {"@dispvm": "a new disposable", "@default": "the default target", "@adminvm": "dom0"}.get(target, target)


def target_note(target: str) -> str:
    """What to know about a target before choosing it; nothing about most."""
    if target in ("dom0", "@adminvm"):
        return "dom0 is the control side: it holds every qube."
    return ""


def label_of(icon: str) -> str | None:
    """The label an icon name ends with: ``appvm-red``; None: it has none."""
    return icon.rpartition("-")[2] or None
