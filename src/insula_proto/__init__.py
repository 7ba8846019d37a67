"""Wire codecs shared by the host and the guest agent.

Standard library only, no I/O, no clock, Python 3.9 or newer. Every decoder takes bytes in any
split and raises :class:`insula_proto.errors.RemoteProtocolError` and nothing else on bad input.
"""
