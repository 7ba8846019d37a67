"""One file per family of distributions.

Each module here has a tuple ``DISTRIBUTIONS`` of :class:`insula.templates.distribution.Distribution`; it is found by
listing this folder, so adding a distribution is adding a file.
"""
