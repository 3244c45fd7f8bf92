"""Column types that SQLite and Postgres keep, compare and index alike."""

import re
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ESCAPE = "\x1a"

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""For primary keys that count up by themselves: SQLite does so in INTEGER keys alone."""


class Instant(sa.TypeDecorator[datetime]):
    """A moment with a time zone, kept as microseconds since 1970 in UTC. One without is a StatementError."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        if value is None:
            return None
        if value.utcoffset() is None:
            raise ValueError(f"an Instant has a time zone, and {value} has none")
        return (value.astimezone(UTC) - _EPOCH) // _MICROSECOND  # OverflowError in UTC's year 10000, and before 1

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


class AnyText(sa.TypeDecorator[str]):
    """Any text that a Protobuf string can hold. Postgres takes no NUL, so it is escaped there."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or dialect.name == "sqlite":
            return value
        return value.replace(_ESCAPE, _ESCAPE * 2).replace("\0", _ESCAPE + "0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is None or dialect.name == "sqlite" or _ESCAPE not in value:
            return value
        return re.sub(
            _ESCAPE + "(.)", lambda escaped: "\0" if escaped[1] == "0" else escaped[1], value, flags=re.DOTALL
        )
