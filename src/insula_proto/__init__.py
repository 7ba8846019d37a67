"""What the host and the guest agent share: wire codecs, and the rules that hold on both sides.

Standard library only, no clock, Python 3.9 or newer. Codecs do no I/O; every decoder takes bytes in any split and
raises :class:`insula_proto.errors.RemoteProtocolError` and nothing else on bad input. :mod:`insula_proto.services`, the
rules by which a service and its settings are found, looks at files and does no more.
"""
