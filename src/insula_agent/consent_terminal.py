"""``insula-consent``: answers, in a terminal, what :mod:`insula_agent.consent` asks where there is no screen.

Questions come one after another over a unix socket in the user's private folder. What was typed before a question was
there is thrown away: it cannot have been an answer to it. A question whose asker has gone is no longer asked.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import termios

if __name__ == "__main__":
    # Isolated mode puts no folder of ours on the path.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from insula_agent import consent

MAX_WAITING = 8
"""Askers in the queue; a further one is refused by the kernel."""
MAX_ANSWER = 64
QUESTION_LIMIT_S = 5
"""Seconds an asker has to say its question."""


class NobodyTypes(Exception):
    """The terminal is closed."""


def printable(untrusted_data: bytes) -> str:
    """A question as a terminal may show it: one line, no control characters."""
    text = untrusted_data.decode("utf-8", "replace")
    return "".join([letter if letter.isprintable() else " " for letter in text])


def listen(path: str) -> socket.socket:
    """Serve this path. :raise OSError: another terminal does already."""
    # One at a time: who is about to listen refuses as one that has ended does.
    held = consent.lock(f"{path}.lock")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            probe.connect(path)
        except FileNotFoundError:
            # Nobody was here.
            pass
        except ConnectionRefusedError:
            # Somebody was, and ended.
            os.unlink(path)
        else:
            raise FileExistsError(f"another terminal answers at {path} already")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(MAX_WAITING)
        return listener
    finally:
        probe.close()
        os.close(held)


def _question(asker: socket.socket) -> str:
    asker.settimeout(QUESTION_LIMIT_S)
    untrusted_data = b""
    while len(untrusted_data) < consent.MAX_QUESTION:
        piece = asker.recv(consent.MAX_QUESTION - len(untrusted_data))
        if not piece:
            break
        untrusted_data += piece
    return printable(untrusted_data)


def _forget_typed(terminal: int) -> None:
    """Throw away what was typed so far; where the terminal is elsewhere (``insula run``), what of it has come."""
    if os.isatty(terminal):
        termios.tcflush(terminal, termios.TCIFLUSH)
        return
    while select.select([terminal], [], [], 0)[0]:
        if not os.read(terminal, MAX_ANSWER):
            raise NobodyTypes


def answer(asker: socket.socket, terminal: int, output: int) -> bool | None:
    """Ask one question at the terminal; None: its asker has gone. :raise NobodyTypes: the terminal has."""
    question = _question(asker)
    if not question:
        # Another terminal that looked whether one listens.
        return None
    _forget_typed(terminal)
    os.write(output, f"\n{question}\nyes or no? ".encode("utf-8"))
    watched = select.poll()
    watched.register(terminal, select.POLLIN)
    # The asker has said all it has to say: only its end can come. POLLRDHUP was there with its half-close already.
    watched.register(asker.fileno(), 0)
    ready = [fd for fd, _ in watched.poll(consent.ANSWER_LIMIT_S * 1000)]
    if terminal not in ready:
        os.write(output, b"(no longer asked)\n")
        return None
    typed = os.read(terminal, MAX_ANSWER)
    if not typed:
        raise NobodyTypes
    is_allowed = typed.strip().lower() == b"yes"
    asker.sendall(consent.ALLOW if is_allowed else consent.DENY)
    os.write(output, b"allowed\n" if is_allowed else b"denied\n")
    return is_allowed


def main() -> int:
    try:
        path = f"{consent.private_folder(os.environ)}/{consent.SOCKET}"
        listener = listen(path)
    except OSError as error:
        sys.stderr.write(f"insula-consent: {error}\n")
        return 1
    sys.stdout.write("Questions of other qubes are asked here; Ctrl-C ends it.\n")
    sys.stdout.flush()
    try:
        while True:
            asker, _ = listener.accept()
            with asker:
                try:
                    answer(asker, 0, 1)
                except (TimeoutError, BrokenPipeError, ConnectionResetError) as error:
                    sys.stdout.write(f"\n(the asker went away: {error})\n")
                    sys.stdout.flush()
    except (KeyboardInterrupt, NobodyTypes):
        return 0
    finally:
        os.unlink(path)


if __name__ == "__main__":
    sys.exit(main())
