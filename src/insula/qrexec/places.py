"""Folders and sockets of the published system, and the variables that put them elsewhere.

Those of ``QREXEC_…``, ``QUBES_…`` and ``VCHAN_…`` are published. For the others published programs know one path only;
ours take another from ``INSULA_…``, so that a second system can be on the same host.
"""

from __future__ import annotations

import os

from insula_proto import services

DAEMON_FOLDER = "/var/run/qubes"
POLICY_PROGRAM = "/usr/lib/qubes/qrexec-policy-exec"
POLICY_SOCKET = "/run/qubes/policy.sock"
EVAL_SIMPLE_SOCKET = "/etc/qubes-rpc/policy.EvalSimple"
EVAL_GUI_SOCKET = "/etc/qubes-rpc/policy.EvalGUI"
POLICY_AGENT_SOCKET = "/var/run/qubes/policy-agent.sock"
POLICY_FOLDERS = ("/run/qubes/policy.d", "/etc/qubes/policy.d")
"""Run time first: its files win."""
OLD_POLICY_FOLDER = "/etc/qubes-rpc/policy"
QUBESD_SOCKET = "/run/qubesd.sock"
QUBESD_INTERNAL_SOCKET = "/run/qubesd.internal.sock"
LOG_FOLDER = "/var/log/qubes"

ADMIN_UUID = "uuid:00000000-0000-0000-0000-000000000000"
ADMIN_NAMES = frozenset({"dom0", "@adminvm", ADMIN_UUID})
"""How the host itself is named as a target."""
ADMIN_DOMAIN = 0


def daemon_folder() -> str:
    return os.environ.get("INSULA_QREXEC_SOCKET_DIR", DAEMON_FOLDER)


def policy_socket() -> str:
    return os.environ.get("INSULA_POLICY_SOCKET", POLICY_SOCKET)


def policy_agent_socket() -> str:
    return os.environ.get("INSULA_POLICY_AGENT_SOCKET", POLICY_AGENT_SOCKET)


def qubesd_socket(*, internal: bool = False) -> str:
    if internal:
        return os.environ.get("INSULA_QUBESD_INTERNAL_SOCKET", QUBESD_INTERNAL_SOCKET)
    return os.environ.get("INSULA_QUBESD_SOCKET", QUBESD_SOCKET)


def log_folder() -> str:
    return os.environ.get("INSULA_QREXEC_LOG_DIR", LOG_FOLDER)


def service_path() -> str:
    return os.environ.get("QREXEC_SERVICE_PATH", services.DEFAULT_SERVICE_PATH)


def config_path() -> str:
    return os.environ.get("QUBES_RPC_CONFIG_PATH", services.DEFAULT_CONFIG_PATH)
