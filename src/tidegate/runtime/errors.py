"""Errors that end a service with a message instead of a traceback."""


class SettingsError(Exception):
    """A setting that cannot work. The text says which one, what is wrong with it, and what to do. Exit code 2."""
