"""The daemon's part of sound: connects to the user's sound server and starts a process between it and a qube.

The daemon itself reads none of it, neither samples nor what the server says.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from insula.preload.forks import ForkedProcess, PreloadedParent
from insula.preload.last_words import LastWords
from insula.preload.messages import Fork
from insula.rpc.spawn import session_uid
from insula.sound import control, server
from insula.sound.control import Configure

SOUND_PROGRAM = "insula.sound.process"
SOUND_FILES = 32
"""RLIMIT_NOFILE: three sockets and what an interpreter has."""
SOUND_ADDRESS_SPACE = 2**28
"""RLIMIT_AS in bytes; what it keeps of samples is less than a hundred kilobytes."""
MAX_WORDS = 200


class SoundFailed(OSError):
    """It ended before the qube did; the text says why."""


async def carry(
    parent: PreloadedParent,
    qube: str,
    qid: int,
    connection: socket.socket,
    environment: Mapping[str, str],
    *,
    records: bool = False,
) -> None:
    """Play what comes from ``connection``, or record into it; return when the qube has ended that.

    ``connection`` stays the caller's; ``environment`` is that of the desktop. Cancelling ends it at once.

    :raise server.NoSoundServer: there is none. :raise SoundFailed: it was refused, or has gone.
    :raise OSError: no process could be started.
    """
    there = await server.connect(environment)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(writer, True)
    words = LastWords(reader)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with there, ours, theirs:
            # (Before it is there: a packet waits.)
            ours.send(control.encode(Configure(qube, records)))
            request = Fork(0, SOUND_PROGRAM, session_uid(qid), SOUND_FILES, SOUND_ADDRESS_SPACE)
            descriptors = (writer, there.fileno(), connection.fileno(), theirs.fileno())
            process = await parent.fork(request, descriptors)
    except BaseException:
        words.close()
        raise
    finally:
        os.close(writer)
    await _until_ended(process, words)


async def _until_ended(process: ForkedProcess, words: LastWords) -> None:
    try:
        code = await process.wait()
        await words.wait()
    finally:
        process.kill()
        words.close()
    if code:
        said = " ".join(words.data.decode("ascii", "replace").split())[-MAX_WORDS:]
        raise SoundFailed(said or f"exit code {code}")
