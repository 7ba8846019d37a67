"""``qubes-gpg-client-wrapper``: takes the place of gpg for programs that call it by its full set of options.

What means nothing in another qube is left out, what names a file of this one is done here, what needs no key is left to
the gpg of this qube; the rest goes to ``qubes-gpg-client`` and is checked there. The translation is pure.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from insula_agent import programs
from insula_agent.split_gpg import client
from insula_agent.split_gpg.options import WITH_VALUE, OptionRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LOCAL = frozenset(
    {"--gen-rand", "--gen-prime", "--enarmor", "--dearmor", "--print-md", "--help", "-h", "--no-default-keyring"}
)
"""Commands that need no key of the vault, and the wish for a key ring of one's own."""
_LEFT_OUT = frozenset(
    {
        "--disable-dirmngr", "--disable-mdc", "--expert", "--force-mdc", "--force-v3-sigs", "--force-v4-certs",
        "--no-sk-comments", "--no-tty", "--no-use-agent", "--use-agent", "--yes",
    }
)  # fmt: skip
_LEFT_OUT_WITH_VALUE = frozenset(
    {
        "--command-fd", "--display", "--keyserver-options", "--lc-ctype", "--lc-messages", "--passphrase-fd",
        "--photo-viewer", "--pinentry-mode", "--ttyname", "--ttytype", "--xauthority",
    }
)  # fmt: skip
_CHARSETS = frozenset({"--charset", "--display-charset"})
_TO_DESCRIPTOR = frozenset({"--status-fd", "--logger-fd", "--attribute-fd"})
_SPELLINGS = {"--detach": "--detach-sign", "--detach-sig": "--detach-sign", "--sign-with": "--local-user"}
_LETTERS_WITH_VALUE = "NrRu"


class Translation:
    """``kind``: ``local`` (gpg of this qube), ``import`` or ``remote``. ``output``, ``log_file``: opened here."""

    __slots__ = ("arguments", "kind", "log_file", "output", "uses_stdout_as_descriptor")

    def __init__(self) -> None:
        self.kind = "remote"
        self.arguments: list[str] = []
        self.output = ""
        self.log_file = ""
        self.uses_stdout_as_descriptor = False
        """Some messages go to descriptor 1, which may become the output file: ``{STDOUT}`` stands for a copy of it."""


STDOUT_PLACE = "{STDOUT}"
LOG_PLACE = "{LOG}"


def translate(arguments: Sequence[str]) -> Translation:
    """:raise OptionRefused: an option without its argument, or one that cannot be had."""
    result = Translation()
    rest = list(arguments)
    while rest:
        word = rest[0]
        if word in _LOCAL:
            result.kind = "local"
            result.arguments = list(arguments)
            return result
        if word == "--import":
            result.kind = "import"
            result.arguments = [other for other in rest[1:] if not other.startswith("-")]
            return result
        if word == "--" or not word.startswith("-") or word == "-":
            break
        rest.pop(0)
        if word.startswith("--"):
            _long(result, word, rest)
        else:
            _short(result, word, rest)
    result.arguments += rest
    return result


def _value(word: str, rest: list[str]) -> str:
    if not rest:
        raise OptionRefused(f"{word} needs an argument")
    return rest.pop(0)


def _long(result: Translation, word: str, rest: list[str]) -> None:
    name, equals, given = word.partition("=")
    name = _SPELLINGS.get(name, name)
    if name in _LEFT_OUT:
        return
    if name in _LEFT_OUT_WITH_VALUE:
        if not equals:
            _value(word, rest)
        return
    takes_value = name[2:] in WITH_VALUE or name in _CHARSETS or name in ("--log-file", "--auto-key-locate")
    if not takes_value:
        result.arguments.append(name + equals + given)
        return
    value = given if equals else _value(word, rest)
    if name == "--output":
        _set_output(result, value)
    elif name == "--log-file":
        result.log_file = value
        result.arguments += ["--logger-fd", LOG_PLACE]
    elif name in _CHARSETS:
        if value.lower() not in ("utf-8", "utf8"):
            raise OptionRefused(f"{name} {value}")
    elif name == "--auto-key-locate":
        if value != "local,wkd":
            raise OptionRefused(f"{name} {value}")
    elif name in _TO_DESCRIPTOR and value == "1":
        result.uses_stdout_as_descriptor = True
        result.arguments += [name, STDOUT_PLACE]
    else:
        result.arguments += [name, value]


def _short(result: Translation, word: str, rest: list[str]) -> None:
    """Letters that share a word; ``o`` takes what follows it."""
    for position, letter in enumerate(word[1:], 1):
        if letter in _LETTERS_WITH_VALUE:
            result.arguments.append(word)
            if position == len(word) - 1:
                result.arguments.append(_value(word, rest))
            return
        if letter == "o":
            if position > 1:
                result.arguments.append(word[:position])
            _set_output(result, word[position + 1 :] or _value(word, rest))
            return
    result.arguments.append(word)


def _set_output(result: Translation, path: str) -> None:
    if result.output:
        raise OptionRefused("two outputs")
    result.output = path


def _placed(result: Translation) -> list[str]:
    """The arguments for the client, files opened and descriptors' numbers filled in."""
    places = {}
    if result.uses_stdout_as_descriptor:
        places[STDOUT_PLACE] = str(os.dup(1))
    if result.log_file:
        places[LOG_PLACE] = str(os.open(result.log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    arguments = [places.get(argument, argument) for argument in result.arguments]
    if not result.output:
        return arguments
    if result.output != "-":
        target = os.open(result.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        os.dup2(target, 1)
        os.close(target)
    return ["--output", "-", *arguments]


def main(arguments: list[str]) -> int:
    try:
        result = translate(arguments)
        if result.kind == "local":
            programs.become(["gpg", *result.arguments])
        if result.kind == "import":
            programs.become(["qubes-gpg-import-key", *result.arguments])
        placed = _placed(result)
    except (OptionRefused, OSError) as error:
        sys.stderr.write(f"qubes-gpg-client-wrapper: {error}\n")
        return client.EXIT_FAILED
    return client.main(placed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
