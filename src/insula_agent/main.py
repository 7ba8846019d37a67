"""The agent's start, in order; each step needs the one before:

1. open the byte channel, wait for the host's handshake (any number of times, whenever the host comes back);
2. read all keys (port 111);
3. once a boot: apply the identity they describe (host name, private volume…);
4. open the control channel (port 512); when the host answers, this qube can run commands;
5. tell systemd.

Told that it is a seed (:mod:`insula_agent.seed`), it tells systemd at once, waits until the system is up and opens the
control channel then. Steps 1 to 4 follow in each fork, as soon as a host is there that does not say so.

A step that cannot be done ends the agent with a message and a non-zero code; systemd starts it again.
"""

from __future__ import annotations

import os
import sys
import time

from insula_agent import bulk_memory, keys, requests
from insula_agent.commands import Commands
from insula_agent.link import Link, TransportError
from insula_agent.log import fatal, log
from insula_agent.loop import Loop
from insula_agent.notification import notify_systemd
from insula_agent.plans import Configuration
from insula_agent.streams import StreamHandler
from insula_proto import services

# See process.py for why not ``signal``.
import _signal  # type: ignore[import-not-found]  # isort: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from insula_agent import identity as identity_module
    from insula_agent.key_socket import KeySocket
    from insula_agent.net import network as network_module
    from insula_agent.windows import Session

DEFAULT_DEVICE = "/dev/virtio-ports/insula.rpc"
SIGTERM = 15
SEED_USER = "user"
"""Whose session a seed prepares: the one whom templates come with."""
WINDOWS_KEY = "/qubes-gui-enabled"
"""See :mod:`insula_agent.windows`."""
CLOCK_KEY = "/insula-clock"
"""See :mod:`insula_agent.renewal`."""
NETWORK_PREFIXES = (
    "/insula-link/",
    "/net-config/",
    "/insula-firewall/",
    "/insula-forward/",
    "/insula-card",
    "/qubes-gateway",
    "/qubes-ip",
    "/qubes-mac",
    "/qubes-netmask",
    "/qubes-netvm-",
    "/qubes-primary-dns",
    "/qubes-secondary-dns",
)
"""Keys of the network, the only ones that :mod:`insula_agent.net.network` hears of: without any, a qube has none."""
GATE_STEP = 0.05
"""Seconds between looks whether the rest of a fork's system may start: not while the first commands come, for it would
be in their way, and in that of other machines that start at the same time."""
GATE_WAIT = 1.0
"""Seconds it waits for a first command to come…"""
GATE_QUIET = 0.7
"""…and for a next one after each that has ended…"""
GATE_LIMIT = 3.0
"""…but no longer than this, and not at all for a command that itself waits for the rest of the system."""
HUSH_TIME = 3.0
"""Seconds from then on in which the system boots while nobody wants anything: two on an idle machine."""
KEY_SOCKET_DELAY = 0.3
"""Seconds from the host's answer to the socket for keys: not in the way of a first command."""
BOOT_STEP = 0.1
"""Seconds between looks whether a seed has booted."""

USAGE = """usage: python3 -S -E -m insula_agent [--device PATH|fd:N] [--keys FOLDER] [--agent-socket PATH]
                                     [--own-user] [--no-identity] [--devices FOLDER]

  --device       byte channel to the host (default %s); a character device, a unix socket, or an open descriptor
  --keys         folder in which keys are shown as files (default %s)
  --agent-socket where programs ask for services of other qubes (default %s)
  --devices      where memory that is shared with the host is found (default %s)
  --own-user     run commands as the user who started the agent (always so unless that is root)
  --no-identity  leave this machine as it is; for trying the agent outside a qube
""" % (DEFAULT_DEVICE, keys.DEFAULT_FOLDER, requests.DEFAULT_SOCKET, bulk_memory.DEVICES)


class SeedRefused(Exception):
    """The host's keys contradict what this machine is."""


class Options:
    __slots__ = ("agent_socket", "device", "devices", "keys_folder", "own_user", "with_identity")

    def __init__(self) -> None:
        self.agent_socket = requests.DEFAULT_SOCKET
        self.device = DEFAULT_DEVICE
        self.devices = bulk_memory.DEVICES
        self.keys_folder = keys.DEFAULT_FOLDER
        self.own_user = os.geteuid() != 0
        self.with_identity = True


def parse_options(arguments: list[str]) -> Options | None:
    """Return the options; None if they are not understood. (``argparse`` costs more to import than it saves.)"""
    options = Options()
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if option == "--own-user":
            options.own_user = True
        elif option == "--no-identity":
            options.with_identity = False
        elif option == "--device" and rest:
            options.device = rest.pop(0)
        elif option == "--devices" and rest:
            options.devices = rest.pop(0)
        elif option == "--keys" and rest:
            options.keys_folder = rest.pop(0)
        elif option == "--agent-socket" and rest:
            options.agent_socket = rest.pop(0)
        else:
            return None
    return options


class Identity:
    """What gives this machine its identity; imported late so that the handshake does not wait for it."""

    _who: identity_module.Identity
    _network: network_module.Network | None = None
    _session: Session | None = None

    def is_seed(self, all_keys: dict[str, bytes]) -> bool:
        """Whether the machine is nobody's."""
        from insula_agent import seed  # noqa: PLC0415

        return seed.is_seed(all_keys)

    def apply(self, all_keys: dict[str, bytes]) -> None:
        """Do what must be done before the host is told.

        :raise Exception: of :func:`insula_agent.identity.apply`; no command may run.
        """
        from insula_agent import identity  # noqa: PLC0415

        self._who = identity.apply(all_keys)

    def finish(self) -> None:
        """Do what must be done before the first command."""
        from insula_agent import identity  # noqa: PLC0415

        identity.finish(self._who)

    def complete(self) -> None:
        """Do what must be done before the rest of the system starts."""
        from insula_agent import identity  # noqa: PLC0415

        identity.complete(self._who)

    def set_clock(self, value: bytes) -> None:
        """The host says what time it is: this machine stood still, and its clock with it, or was told late."""
        from insula_agent import renewal  # noqa: PLC0415

        try:
            clock = renewal.plan_setting(value, time.time_ns())
        except renewal.RenewalError as error:
            log(str(error))
            return
        if clock is not None:
            renewal.set_clock(clock)

    def set_up_network(self, loop: Loop, all_keys: dict[str, bytes]) -> None:
        """Do what the keys say of the network, before the first command; an identity was applied.

        What fails is logged, and leaves the network closed.
        """
        of_network = {path: value for path, value in all_keys.items() if path.startswith(NETWORK_PREFIXES)}
        if of_network or self._network is not None:
            self._get_network(loop).begin(of_network, self._who.services)

    def change_network(self, loop: Loop, path: str, value: bytes | None) -> None:
        """A key was set, or is gone (None)."""
        if path.startswith(NETWORK_PREFIXES):
            self._get_network(loop).key_changed(path, value)

    def _get_network(self, loop: Loop) -> network_module.Network:
        if self._network is None:
            from insula_agent.net import network  # noqa: PLC0415 - most qubes have none

            self._network = network.Network(loop)
        return self._network

    def want_windows(self, loop: Loop, value: bytes | None) -> None:
        """The host says whether it shows windows; an identity was applied."""
        if value != b"1":
            return
        if self._session is None:
            from insula_agent import windows  # noqa: PLC0415 - most qubes have none

            self._session = windows.Session(loop)
        self._session.begin(self._who.user)

    def prepare_windows(self, loop: Loop, on_prepared: Callable[[], None]) -> None:
        """In a seed: have a session there for forks that want one, then call ``on_prepared``."""
        from insula_agent import windows  # noqa: PLC0415
        from insula_agent.gui import server  # noqa: PLC0415

        if self._session is not None or not os.path.exists(server.PROGRAM):
            on_prepared()
            return
        self._session = windows.Session(loop)
        self._session.prepare(SEED_USER, on_prepared)

    def rehearse_windows(self, on_rehearsed: Callable[[], None]) -> None:
        """In a fork that is nobody's yet: go once through what a first window takes, then call ``on_rehearsed``."""
        if self._session is None:
            on_rehearsed()
        else:
            self._session.rehearse(on_rehearsed)

    def is_gated(self) -> bool:
        """Whether the rest of the system waits for us to open the gate."""
        from insula_agent import seed  # noqa: PLC0415

        return seed.is_gated()

    def open_gate(self) -> bool:
        """Let it start; False: nobody waits yet."""
        from insula_agent import seed  # noqa: PLC0415

        if not seed.open_gate():
            return False
        seed.look_again()
        return True

    def end_hush(self) -> None:
        """Have the system's own processes take their turns again."""
        from insula_agent import seed  # noqa: PLC0415

        if seed.is_booted():
            seed.hush(is_wanted=False)


class NoIdentity(Identity):
    """Leaves the machine as it is."""

    def is_seed(self, all_keys: dict[str, bytes]) -> bool:
        del all_keys
        return False

    def apply(self, all_keys: dict[str, bytes]) -> None:
        log(f"identity left alone, {len(all_keys)} keys")

    def finish(self) -> None:
        pass

    def complete(self) -> None:
        pass

    def set_clock(self, value: bytes) -> None:
        pass

    def set_up_network(self, loop: Loop, all_keys: dict[str, bytes]) -> None:
        pass

    def change_network(self, loop: Loop, path: str, value: bytes | None) -> None:
        pass

    def want_windows(self, loop: Loop, value: bytes | None) -> None:
        pass

    def is_gated(self) -> bool:
        return False

    def end_hush(self) -> None:
        pass


class Rehearsed(Identity):
    """Becomes somebody as a fork does, up to the first command: what comes after it cannot be undone."""

    def is_seed(self, all_keys: dict[str, bytes]) -> bool:
        del all_keys
        return False

    def complete(self) -> None:
        pass

    def is_gated(self) -> bool:
        return False

    def end_hush(self) -> None:
        pass


class Agent:
    """Holds the parts and the order between them."""

    def __init__(self, options: Options, identity: Identity) -> None:
        self._identity = identity
        self._has_identity = False
        self._is_complete = False
        self._begun = 0.0
        """When this machine became somebody, on the monotonic clock."""
        self._is_announced = False
        self.loop = Loop()
        self.link = Link(self.loop, options.device, self._synced, self._accept, options.devices)
        self.keys = keys.Keys(self.link, options.keys_folder, self._keys_read, self._key_written, self._key_removed)
        configuration = Configuration(
            os.environ.get("QREXEC_SERVICE_PATH", services.DEFAULT_SERVICE_PATH),
            os.environ.get("QUBES_RPC_CONFIG_PATH", services.DEFAULT_CONFIG_PATH),
            options.agent_socket,
            may_switch=not options.own_user,
        )
        self.commands = Commands(self.loop, self.link, configuration, self._ready)
        self._key_socket_path = os.path.join(os.path.dirname(options.agent_socket), "qubesdb.sock")
        self.key_socket: KeySocket | None = None

    def listen(self) -> None:
        """Let programs of this qube ask. Without that it still does what it is told, which is more than nothing."""
        try:
            self.commands.requests.listen()
        except OSError as error:
            log(f"programs cannot ask for services: {error}")

    def _accept(self, stream: int, port: int) -> StreamHandler | None:
        return self.commands.accept(stream, port)

    def _synced(self) -> None:
        self.keys.start()

    def _keys_read(self, all_keys: dict[str, bytes]) -> None:
        if self._identity.is_seed(all_keys):
            self._be_seed(all_keys)
            return
        is_new = not self._has_identity
        if is_new:
            self._identity.apply(all_keys)
            self._has_identity = True
        self.keys.forget_seed()
        self.commands.start()
        if is_new:
            # The host goes on meanwhile; what it asks is heard after this.
            self.link.flush()
            self._identity.finish()
        self._identity.set_up_network(self.loop, all_keys)
        self._identity.want_windows(self.loop, all_keys.get(WINDOWS_KEY))
        if is_new:
            if self._identity.is_gated():
                self._begun = time.monotonic()
                self.loop.after(GATE_STEP, self._look_at_gate)
            else:
                self._identity.complete()
                # An agent before this one may have opened the gate.
                self._identity.end_hush()
        self.commands.requests.allow()

    def _key_written(self, path: str, value: bytes) -> None:
        # Before that it is read with the others, and obeyed once.
        if path == CLOCK_KEY and self._has_identity:
            self._identity.set_clock(value)
        elif path == WINDOWS_KEY and self._has_identity:
            self._identity.want_windows(self.loop, value)
        elif self._has_identity:
            self._identity.change_network(self.loop, path, value)

    def _key_removed(self, path: str) -> None:
        if self._has_identity:
            self._identity.change_network(self.loop, path, None)

    def _ready(self, version: int) -> None:
        log(f"ready, qrexec version {version}")
        self._announce()
        self.loop.after(KEY_SOCKET_DELAY, self._show_keys)

    def _show_keys(self) -> None:
        """Let programs of this qube read and write keys, if they cannot yet."""
        if self.key_socket is not None:
            return
        from insula_agent.key_socket import KeySocket  # noqa: PLC0415 - no boot waits for it

        self.key_socket = KeySocket(self.loop, self.keys, self._key_socket_path)
        try:
            self.key_socket.listen()
        except OSError as error:
            log(f"programs cannot read keys: {error}")

    def _announce(self) -> None:
        if not self._is_announced:
            self._is_announced = True
            notify_systemd("READY=1")

    # --- seeds and their forks -----------------------------------------------------------------------------------

    def _be_seed(self, all_keys: dict[str, bytes]) -> None:
        from insula_agent import identity, rehearsal, seed  # noqa: PLC0415

        if self._has_identity:
            raise SeedRefused("this machine has an identity and cannot be a seed any more")
        if rehearsal.is_wanted(all_keys):
            self._rehearse(all_keys)
            return
        seed.prepare()
        self._announce()
        deadline = time.monotonic() + seed.BOOT_LIMIT
        epoch = self.link.epoch

        def look() -> None:
            if epoch != self.link.epoch:
                return
            if not seed.is_booted() and time.monotonic() < deadline:
                self.loop.after(BOOT_STEP, look)
                return
            self._identity.prepare_windows(self.loop, settle)

        def settle() -> None:
            if epoch != self.link.epoch:
                return
            identity.rehearse()
            self.commands.rehearse()
            # Here, so that no fork has to.
            self._show_keys()
            seed.settle()
            self.loop.after(seed.REPORTING_TIME, say_hello)

        def say_hello() -> None:
            if epoch == self.link.epoch:
                self.commands.start()

        look()

    def _rehearse(self, all_keys: dict[str, bytes]) -> None:
        """In a fork that nobody has asked for yet; then tell the host that it is over."""
        from insula_agent import rehearsal, seed  # noqa: PLC0415

        try:
            rehearsal.run(all_keys, play)
            # Its mounts are in a namespace, where nobody else sees them.
            seed.mount_once()
        except (rehearsal.RehearsalFailed, OSError) as error:
            log(f"rehearsal: {error}")
        epoch = self.link.epoch

        def say_hello() -> None:
            if epoch == self.link.epoch:
                self.commands.start()

        if rehearsal.has_window(all_keys):
            self._identity.rehearse_windows(say_hello)
        else:
            say_hello()

    def _look_at_gate(self) -> None:
        if self._may_open_gate(time.monotonic()):
            if not self._is_complete:
                self._identity.complete()
                self._is_complete = True
            if self._identity.open_gate():
                self.loop.after(HUSH_TIME, self._identity.end_hush)
                return
        self.loop.after(GATE_STEP, self._look_at_gate)

    def _may_open_gate(self, now: float) -> bool:
        commands = self.commands
        if commands.is_system_wanted or now - self._begun >= GATE_LIMIT:
            return True
        if commands.is_busy:
            return False
        return now >= (commands.ended_at + GATE_QUIET if commands.ended_at else self._begun + GATE_WAIT)


def play(channel: int) -> None:
    """Be the agent of a rehearsal, on an open descriptor, until it is closed."""
    options = Options()
    options.device = f"fd:{channel}"
    agent = Agent(options, Rehearsed())
    agent.link.start()
    agent.loop.run()


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: list[str]) -> int:
    options = parse_options(arguments)
    if options is None:
        sys.stderr.write(USAGE)
        return 2
    agent = Agent(options, Identity() if options.with_identity else NoIdentity())
    _signal.signal(SIGTERM, _terminate)
    try:
        agent.listen()
        agent.link.start()
        return agent.loop.run()
    except TransportError as error:
        fatal(f"no byte channel: {error}")
        return 1
    except Exception as error:
        # Not swallowed: said where the host can see it, then ended, so that systemd starts us anew.
        fatal(f"{type(error).__name__}: {error}")
        raise
    finally:
        agent.commands.kill_all()
        agent.commands.requests.close()
        if agent.key_socket is not None:
            agent.key_socket.close()
