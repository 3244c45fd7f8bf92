"""Kinds of writes: functions that a transaction runs, for one caller or for several at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import sqlalchemy as sa

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What one caller wants written."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Write(Generic[P, T]):
    """A kind of write, made by one of the decorators below and run by `Database.write`."""

    run: Callable[[sa.Connection, Sequence[Arguments]], Sequence[Any]]
    """Writes for several callers in one transaction: for each its result, or the exception that it gets instead."""


def together(function: Callable[[sa.Connection, Sequence[Item]], Sequence[T | Exception]]) -> Write[[Item], T]:
    """Makes a write of a function that takes the items of all callers at once, and so a few statements for many.

    It returns a result for each item, in their order. An exception among the results is raised to that item's caller,
    and nothing may be stored for it; what the function raises fails the transaction, which is done again item by item.
    """
    return Write(lambda connection, calls: function(connection, [item for call in calls for item in call.args]))


def one_by_one(function: Callable[Concatenate[sa.Connection, P], T]) -> Write[P, T]:
    """Makes a write of a function that serves one caller: what it raises is that caller's, and takes back its own part.

    Each call runs within a savepoint of the transaction that it shares with others.
    """

    def attempt(connection: sa.Connection, call: Arguments) -> T | Exception:
        try:
            with connection.begin_nested():
                return function(connection, *call.args, **call.kwargs)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as error:
            return error

    return Write(lambda connection, calls: [attempt(connection, call) for call in calls])
