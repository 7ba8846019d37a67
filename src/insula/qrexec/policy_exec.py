"""``qrexec-policy-exec``: answers one question about policy, as the policy daemon does, when that one is not there.

With three words it prints the answer. With five, which is how daemons of old versions run it, it also carries the call
out: finds or starts the target and tells both ends.
"""

from __future__ import annotations

import getopt
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from insula.policy.decisions import Ask
from insula.policy.evaluate import QuestionError
from insula.qrexec import errand
from insula.qrexec.errors import DaemonError, QubesdError
from insula.qrexec.log import name_program, say
from insula.qrexec.places import daemon_folder
from insula.qrexec.policy_protocol import Answer, Question, decode_answer
from insula.qrexec.sockets import DaemonClient
from insula.qrexec.verdicts import DENY, decide, read_snapshot, report, store_of, text_of
from insula_proto.vchan import MAX_DOMAIN, Place

EXIT_DENIED = 1
EXIT_USAGE = 2

USAGE = """\
Usage: qrexec-policy-exec [options] [--] SOURCE TARGET SERVICE+ARGUMENT
       qrexec-policy-exec [options] [--] DOMAIN SOURCE TARGET SERVICE+ARGUMENT IDENT

Says whether policy allows a call, and how; with DOMAIN and IDENT, makes it.

  --just-evaluate         print nothing, ask nobody
  --assume-yes-for-ask    a user who would be asked would say yes
  --path=FOLDER           rules; given twice, files of the first folder win
                          [/run/qubes/policy.d and /etc/qubes/policy.d]
  -h, --help              show this

Exits with 0 if the call is allowed, 1 if it is denied.
"""


def ask(question: Question, folders: list[str]) -> str:
    """The lines of the answer. What talks to the user is loaded only where somebody is to be asked or told."""
    policy = store_of(folders).load()
    report(policy)
    try:
        decision = decide(question, policy, read_snapshot())
    except (QubesdError, QuestionError) as error:
        say(f"{question.service} from {question.source} is denied: the system is unknown: {error}")
        return DENY
    if isinstance(decision, Ask) or (decision.notify and not question.just_evaluate):
        return str(import_module("insula.qrexec.judge").ask_once(question, folders))
    return text_of(question, decision)


def main(arguments: Sequence[str] | None = None) -> int:
    name_program("qrexec-policy-exec")
    try:
        given, words = getopt.gnu_getopt(
            list(sys.argv[1:] if arguments is None else arguments),
            "h",
            ["just-evaluate", "assume-yes-for-ask", "path=", "help"],
        )
    except getopt.GetoptError as error:
        print(f"qrexec-policy-exec: {error}\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_USAGE
    names = {name for name, _ in given}
    folders = [value for name, value in given if name == "--path"]
    if names & {"-h", "--help"}:
        print(USAGE, end="")
        return 0
    if len(words) not in (3, 5) or len(folders) > 2:
        print(f"qrexec-policy-exec: three words, or five; two folders at most\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_USAGE
    just_evaluate = "--just-evaluate" in names
    source, target, service = words if len(words) == 3 else words[1:4]
    question = Question(
        source, target, service, just_evaluate=just_evaluate, assume_yes="--assume-yes-for-ask" in names
    )
    text = ask(question, folders)
    if just_evaluate:
        return 0 if text.startswith("result=allow\n") else EXIT_DENIED
    answer = decode_answer(text.encode("ascii"))
    if len(words) == 3:
        print(text, end="")
        return EXIT_DENIED if answer is None else 0
    return EXIT_DENIED if answer is None else _make_call(question, answer, words[0], words[4])


def _make_call(question: Question, answer: Answer, domain: str, ident: str) -> int:
    if not domain.isascii() or not domain.isdigit() or not 0 < int(domain) <= MAX_DOMAIN:
        say(f"not the domain of a qube: {domain}")
        return EXIT_USAGE
    try:
        daemon = DaemonClient.connect(daemon_folder(), domain)
        caller = errand.Caller(int(domain), question.source, os.fsencode(ident), daemon_folder(), Place.of(os.environ))
        return errand.carry_out(caller, question, answer, daemon)
    except (DaemonError, ValueError) as error:
        say(str(error))
        return EXIT_DENIED


if __name__ == "__main__":
    sys.exit(main())
