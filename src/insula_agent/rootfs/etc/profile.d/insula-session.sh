# What programs with windows need to know, once there is a session. Without a program of its own: every call reads this.
if [ -r /run/insula/session-env ]; then
    . /run/insula/session-env
fi
