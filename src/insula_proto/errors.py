"""Errors of all codecs.

ProtocolError
├── LocalProtocolError    we tried to send something the protocol forbids: our bug
└── RemoteProtocolError   the peer sent something the protocol forbids: drop the peer
"""


class ProtocolError(Exception):
    """Base of both; catch one of the two instead."""


class LocalProtocolError(ProtocolError):
    """This side asked for something the protocol or the connection's state does not allow."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. The connection it came on must be closed, nothing else is safe."""
