"""``qubes.Filecopy``: take files from another qube into ``~/QubesIncoming/REMOTE/``, and say how it went.

In order: open the destination, shut ourselves up in it (:mod:`insula_agent.filecopy.confinement`), read the stream
(:mod:`insula_proto.qfile`), write it (:mod:`insula_agent.filecopy.incoming`), answer. Whatever is wrong, with the
stream or with this qube's disk, is an answer with an errno; nothing more is read after it.

Published options of the program: ``--allow-all-names``, ``--wait-for-space=BYTES``, and from the environment
UPDATES_MAX_BYTES, UPDATES_MAX_FILES.
"""

from __future__ import annotations

import errno
import os
import sys

from insula_agent.filecopy import confinement
from insula_agent.filecopy.confinement import NotConfined
from insula_agent.filecopy.incoming import Incoming, WriteFailed
from insula_agent.files import FOLDER_FLAGS
from insula_proto import limits, qfile
from insula_proto.file_names import is_displayable
from insula_proto.qfile import Answer, Decoder, Quota, StreamRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOM = "QubesIncoming"
ALL_NAMES = "allow-all-names"
BLOCK = 1 << 20
"""Bytes read at once: what a pipe holds."""
EXIT_PROBLEM = 1
_FIRST_SPECIAL_EXIT = 125
_MAX_REMOTE = 63
_REMOTE_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_MAX_DIGITS = 19


class Unusable(Exception):
    """The service was called or installed in a way it does not work."""


class Options:
    """How to receive."""

    __slots__ = ("all_names", "margin", "quota", "remote")

    def __init__(self, remote: str, quota: Quota) -> None:
        self.remote = remote
        self.quota = quota
        self.all_names = False
        self.margin: int | None = None


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """:raise Unusable:"""
    remote = environment.get("QREXEC_REMOTE_DOMAIN", "")
    if not 0 < len(remote) <= _MAX_REMOTE or not _REMOTE_LETTERS.issuperset(remote) or remote.startswith("."):
        raise Unusable(f"no name of a qube: {remote!a}")
    quota = Quota(
        total=_limit(environment, "UPDATES_MAX_BYTES", limits.QFILE_MAX_TOTAL),
        entries=_limit(environment, "UPDATES_MAX_FILES", limits.QFILE_MAX_ENTRIES),
    )
    options = Options(remote, quota)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument in (ALL_NAMES, f"--{ALL_NAMES}"):
            options.all_names = True
        elif name == "--wait-for-space" and equals and _is_number(value):
            options.margin = int(value)
        elif argument:
            raise Unusable(f"an argument that means nothing: {argument!a}")
    return options


def _limit(environment: Mapping[str, str], name: str, ours: int) -> int:
    """A limit from the environment; never more than ours. :raise Unusable:"""
    text = environment.get(name, "")
    if text and not _is_number(text):
        raise Unusable(f"{name} is {text!a}")
    return min(int(text), ours) if text and int(text) else ours


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def open_destination(home: str, remote: str) -> tuple[int, int]:
    """Open ``QubesIncoming/REMOTE`` of a home, made where it is missing, and shut ourselves in where that can be.

    :return: the folder, and ``/proc/self/fd``.
    :raise OSError: one of the two is no folder (``REMOTE`` no link either), or cannot be made.
    """
    is_separate = True
    try:
        confinement.separate()
    except NotConfined as error:
        _say_not_confined(error)
        is_separate = False
    descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    room = os.open(_made(None, f"{home}/{ROOM}"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = os.open(_made(room, remote), FOLDER_FLAGS, dir_fd=room)
        if not is_separate:
            return folder, descriptors
        try:
            bound = confinement.bind(folder, room, remote)
        except NotConfined as error:
            _say_not_confined(error)
            confinement.drop_capabilities()
            return folder, descriptors
        os.close(folder)
    finally:
        os.close(room)
    confinement.enclose(bound)
    return bound, descriptors


def _say_not_confined(error: NotConfined) -> None:
    sys.stderr.write(f"qubes.Filecopy: not confined: {error}\n")


def _made(folder: int | None, name: str) -> str:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        # The usual case; whether it is a folder shows when it is opened.
        return name
    return name


def receive(source: int, incoming: Incoming, decoder: Decoder) -> Answer:
    """Read a stream to its end; the answer."""
    block = memoryview(bytearray(BLOCK))
    answer = Answer(errno.EIO, 0)
    is_full = False
    try:
        while not decoder.is_ended and (count := os.readv(source, [block])):
            for event in decoder.receive(block[:count]):
                incoming.take(event)
        decoder.finish()
        answer = Answer(0, decoder.crc, decoder.last_name or b"")
    except StreamRefused as error:
        answer = Answer(error.code, decoder.crc, error.name or b"")
    except WriteFailed as error:
        answer = Answer(error.code, decoder.crc, decoder.last_name or b"")
        is_full = error.is_full
    finally:
        incoming.close(is_full=is_full)
    return answer


def exit_code(answer: Answer) -> int:
    """As published the errno, where that means nothing else as an exit code."""
    return answer.code if answer.code < _FIRST_SPECIAL_EXIT else EXIT_PROBLEM


def main(arguments: Sequence[str]) -> int:
    # Loaded while it can be: once we are shut in there is no library.
    is_displayable("é".encode())
    try:
        options = parse(arguments, os.environ)
        folder, descriptors = open_destination(os.environ.get("HOME", ""), options.remote)
        incoming = Incoming(folder, descriptors, options.margin)
    except Unusable as error:
        sys.stderr.write(f"qubes.Filecopy: {error}\n")
        return EXIT_PROBLEM
    except OSError as error:
        # The disk is full, say: the sender is told.
        answer = Answer(error.errno or errno.EIO, 0)
    else:
        answer = receive(0, incoming, Decoder(options.quota, all_names=options.all_names))
    os.close(0)
    left = memoryview(qfile.encode_answer(answer))
    while left:
        left = left[os.write(1, left) :]
    return exit_code(answer)
