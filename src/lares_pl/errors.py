"""The one exception a person is meant to read."""


class LaresError(Exception):
    """Something the caller can mend: the message says what is wrong, where, and what to do.

    The command line prints the message alone; set `LARES_TRACEBACK=1` to see the traceback as well.
    """
