"""Sound of this qube: what its sound server mixes is played by the host (:mod:`insula_proto.sound`).

Nothing of it runs until a program wants to be heard. Then its library starts ``/usr/lib/insula/sound-server``, which
starts PulseAudio and :mod:`insula_agent.sound.server`; both end when nobody plays.
"""
