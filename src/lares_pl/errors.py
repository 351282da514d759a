"""The exception for errors that the user can fix."""


class LaresError(Exception):
    """An error that the user can fix: the message states what is wrong, the value found, and what to do.

    The command line prints the message alone; set `LARES_TRACEBACK=1` to see the traceback as well.
    """
