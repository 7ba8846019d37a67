"""Which of gpg's options may cross qubes, and what they say about descriptors (agent-services §10); pure.

Both ends parse the same way: the client to know which of its files and descriptors take part, the server because it
trusts nothing. The list is of what is *allowed*. Left out is what names a file, a program, a server or another key ring
on the server's side, what would have gpg ask its questions on a descriptor, and what hands out secret keys.
"""

from __future__ import annotations

from insula_proto import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENVELOPE = (
    "--no-tty",
    "--batch",
    "--disable-dirmngr",
    "--no-auto-key-locate",
    "--no-auto-key-retrieve",
    "--photo-viewer=/bin/true",
    "--exit-on-status-write-error",
)
"""What the server puts before a client's options: no questions on a terminal, no network, no viewer of pictures."""

FLAGS = frozenset(
    {
        "always-trust", "armor", "batch", "clear-sign", "clearsign", "decrypt", "default-recipient-self", "detach-sign",
        "dry-run", "emit-version", "enable-progress-filter", "encrypt", "exit-on-status-write-error", "export",
        "export-ownertrust", "export-ssh-key", "fingerprint", "fixed-list-mode", "gnupg", "list-config", "list-key",
        "list-keys", "list-only", "list-public-keys", "list-secret-keys", "list-sig", "list-sigs", "no-armor",
        "no-auto-check-trustdb", "no-comments", "no-default-recipient", "no-emit-version", "no-encrypt-to",
        "no-force-v3-sigs", "no-force-v4-certs", "no-greeting", "no-secmem-warning", "no-skip-hidden-recipients",
        "no-throw-keyids", "no-verbose", "openpgp", "pgp6", "pgp7", "pgp8", "quiet", "rfc2440", "rfc4880",
        "show-session-key", "sign", "skip-hidden-recipients", "store", "symmetric", "textmode", "throw-keyids",
        "try-all-secrets", "unwrap", "verbose", "verify", "version", "with-colons", "with-fingerprint", "with-keygrip",
        "with-secret",
    }
)  # fmt: skip
WITH_VALUE = frozenset(
    {
        "attribute-fd", "cert-notation", "comment", "compress-algo", "default-key", "digest-algo", "encrypt-to",
        "export-options", "hidden-encrypt-to", "hidden-recipient", "keyid-format", "list-options", "local-user",
        "logger-fd", "max-output", "output", "personal-cipher-preferences", "personal-compress-preferences",
        "personal-digest-preferences", "recipient", "s2k-cipher-algo", "s2k-count", "s2k-digest-algo", "s2k-mode",
        "sender", "set-filename", "set-notation", "sig-notation", "status-fd", "trust-model", "trusted-key",
        "try-secret-key", "verify-options",
    }
)  # fmt: skip
"""Options with an argument."""
LETTERS = {
    "b": "detach-sign", "a": "armor", "c": "symmetric", "d": "decrypt", "e": "encrypt", "k": "list-keys",
    "K": "list-secret-keys", "n": "dry-run", "N": "set-notation", "o": "output", "q": "quiet", "r": "recipient",
    "R": "hidden-recipient", "s": "sign", "t": "textmode", "u": "local-user",
}  # fmt: skip

_COMMANDS_ON_KEYS = frozenset(
    {
        "export", "export-ssh-key", "fingerprint", "list-key", "list-keys", "list-public-keys", "list-secret-keys",
        "list-sig", "list-sigs",
    }
)  # fmt: skip
"""What follows their options names keys, not files."""
_COMMANDS_ON_FILES = frozenset(
    {
        "clear-sign", "clearsign", "decrypt", "detach-sign", "encrypt", "export-ownertrust", "list-config", "sign",
        "store", "symmetric", "verify",
    }
)  # fmt: skip

_SHOW = frozenset(
    {
        "show-keyserver-urls", "show-notations", "show-photos", "show-policy-urls", "show-std-notations",
        "show-standard-notations", "show-uid-validity", "show-unusable-uids", "show-user-notations",
    }
)  # fmt: skip
_LISTS = {
    "list-options": _SHOW
    | {
        "show-only-fpr-mbox", "show-sig-expire", "show-sig-subpackets", "show-unusable-subkeys", "show-usage",
        "sort-sigs",
    },
    "verify-options": _SHOW | {"show-primary-key-only"},
    "export-options": frozenset(
        {
            "export-attributes", "export-clean", "export-clean-sigs", "export-clean-uids", "export-local-sigs",
            "export-minimal", "export-unusable-sigs", "include-attributes", "include-local-sigs",
        }
    ),
}  # fmt: skip
"""Options whose argument is a list of options again. Left out: the key ring's path, files for DNS, whole backups."""

STDIN, STDOUT, STDERR = 0, 1, 2
SIGNATURE = "/dev/fd/"
"""How a detached signature's descriptor is named after ``--verify``."""


class OptionRefused(ValueError):
    """The options may not cross qubes."""


class Plan:
    """What options say. ``arguments``: all of them, without a file that is to be standard input."""

    __slots__ = ("arguments", "files", "inputs", "outputs")

    def __init__(self) -> None:
        self.arguments: list[str] = []
        self.inputs = [STDIN]
        self.outputs = [STDOUT, STDERR]
        """Descriptors gpg reads and writes, in the order in which both sides number them."""
        self.files: list[str] = []
        """What follows the options and names files; at most one, ``-`` on the server's side."""


def parse(arguments: Sequence[str], open_signature: Callable[[str], int] | None = None) -> Plan:
    """Check options, and find out about descriptors.

    :param open_signature: on the client's side: opens the file that holds a detached signature.
    :raise OptionRefused:
    """
    plan = Plan()
    seen: set[str] = set()
    rest = list(arguments)
    has_ended = False
    commands: set[str] = set()
    while rest and not has_ended and rest[0].startswith("-") and rest[0] != "-":
        has_ended = rest[0] == "--"
        for name, value in [] if has_ended else _take(rest):
            _note(plan, name, value, seen)
            if name in _COMMANDS_ON_FILES or name in _COMMANDS_ON_KEYS:
                commands.add(name)
        if has_ended:
            rest.pop(0)
    plan.arguments = list(arguments[: len(arguments) - len(rest)])
    if not has_ended and any([word.startswith("-") and word != "-" for word in rest]):  # noqa: C419 - no generator frames
        raise OptionRefused("options come before anything else")
    if commands & _COMMANDS_ON_KEYS:
        if commands & _COMMANDS_ON_FILES:
            raise OptionRefused("commands that cannot be given together")
        plan.arguments += rest
        return plan
    if "verify" in commands and rest:
        plan.arguments.append(_signature(plan, rest.pop(0), open_signature))
    if len(rest) > 1:
        raise OptionRefused("more than one file")
    plan.files = rest
    return plan


def plan_server(arguments: Sequence[str]) -> Plan:
    """The same for what came from another qube: files are its own, so there is standard input at most.

    :raise OptionRefused:
    """
    plan = parse(arguments)
    if plan.files not in ([], ["-"]):
        raise OptionRefused("a file of this side")
    plan.arguments = [*ENVELOPE, *plan.arguments, *plan.files]
    return plan


def _take(rest: list[str]) -> list[tuple[str, str | None]]:
    """Remove the first word, and its argument; which options it has. Letters may share a word."""
    word = rest.pop(0)
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        if name in WITH_VALUE:
            return [(name, value if equals else _argument(rest, word))]
        if name not in FLAGS or equals:
            raise OptionRefused(f"option --{name}")
        return [(name, None)]
    found: list[tuple[str, str | None]] = []
    for position, letter in enumerate(word[1:], 2):
        option = LETTERS.get(letter)
        if option is None:
            raise OptionRefused(f"option -{letter}")
        if option in WITH_VALUE:
            return [*found, (option, word[position:] or _argument(rest, word))]
        found.append((option, None))
    return found


def _argument(rest: list[str], word: str) -> str:
    if not rest:
        raise OptionRefused(f"{word} needs an argument")
    return rest.pop(0)


def _note(plan: Plan, name: str, value: str | None, seen: set[str]) -> None:
    if value is None:
        return
    if name in ("status-fd", "logger-fd", "attribute-fd"):
        if name in seen:
            raise OptionRefused(f"--{name} twice")
        seen.add(name)
        _add(plan.outputs, descriptor(value), plan.inputs)
    elif name == "output" and value != "-":
        raise OptionRefused("an output other than -")
    elif name in _LISTS:
        _check_list(name, value)


def descriptor(text: str) -> int:
    """A descriptor's number, in its only form. :raise OptionRefused:"""
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or (text[0] == "0" and text != "0"):
        raise OptionRefused("a descriptor that is no number")
    if int(text) > limits.GPG_MAX_DESCRIPTOR:
        raise OptionRefused(f"a descriptor above {limits.GPG_MAX_DESCRIPTOR}")
    return int(text)


def _add(descriptors: list[int], number: int, others: Sequence[int]) -> None:
    if number in others:
        raise OptionRefused(f"descriptor {number} for reading and writing")
    if number not in descriptors:
        if len(descriptors) >= limits.GPG_MAX_DESCRIPTORS:
            raise OptionRefused("too many descriptors")
        descriptors.append(number)


def _signature(plan: Plan, name: str, open_signature: Callable[[str], int] | None) -> str:
    if open_signature is not None:
        number = open_signature(name)
    else:
        if not name.startswith(SIGNATURE):
            raise OptionRefused("a signature in a file of this side")
        number = descriptor(name[len(SIGNATURE) :])
        if number <= STDERR:
            raise OptionRefused("a signature on a standard descriptor")
    _add(plan.inputs, number, plan.outputs)
    return f"{SIGNATURE}{number}"


def _check_list(name: str, value: str) -> None:
    """Words, apart by commas or blanks, each on the list, maybe with ``no-`` before it. :raise OptionRefused:"""
    for word in value.replace(",", " ").split(" "):
        option, equals, argument = word.partition("=")
        plain = option[3:] if option.startswith("no-") else option
        if not word or option == "help":
            continue
        if plain not in _LISTS[name]:
            raise OptionRefused(f"--{name} {option}")
        if equals and (option != "show-sig-subpackets" or not argument.isdigit()):
            raise OptionRefused(f"--{name} {option} with an argument")
