"""What a store raises by itself, beside what its reads and writes raise."""


class StoreUnavailable(Exception):
    """The database does not answer. What was to be stored is not stored, or is found when the call is repeated."""


class StoreOverloaded(Exception):
    """More calls wait for the database than it can serve in time; this one was not begun."""


class CannotOpen(Exception):
    """The database cannot be used. The message is one line for an operator, without the password."""
