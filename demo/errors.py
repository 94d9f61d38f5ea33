"""The demo's one error."""


class DemoError(Exception):
    """The demo cannot go on, or has failed; the text is for the person who started it."""
