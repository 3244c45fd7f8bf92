"""Column types: what is stored comes back, is found and is sorted, on both kinds of database alike."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from txstore import SEQUENCE, AnyText, Instant
from txstore_tests.notes import connection_to

metadata = sa.MetaData()
values = sa.Table(
    "column_values",
    metadata,
    sa.Column("number", SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("text", AnyText),
    sa.Column("moment", Instant, index=True),
    sqlite_autoincrement=True,
)
EXAMPLES = settings(
    deadline=None,  # a statement takes as long as the machine is busy
    print_blob=True,  # a failure says how it is made again
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example empties the table
)
OFFSETS = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda minutes: timezone(timedelta(minutes=minutes)))
DAY = timedelta(days=1)  # beside which the year 1 begins, and 9999 ends, in some zone
MOMENTS = st.datetimes(datetime.min + DAY, datetime.max - DAY, timezones=OFFSETS | st.just(UTC))
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    "\0\x1a0a\\"
)  # no surrogates: not in Protobuf either


@pytest.fixture
def connection(database_url: str) -> Iterator[sa.Connection]:
    """To a database with the table."""
    with connection_to(database_url) as connection:
        metadata.create_all(connection)
        connection.commit()
        yield connection


def stored(connection: sa.Connection, *rows: dict[str, Any]) -> None:
    """Stores these rows, and no others."""
    connection.rollback()
    connection.execute(values.insert(), list(rows))


@EXAMPLES
@given(one=TEXTS, other=TEXTS)
@example(one="\0", other="\x1a0")
@example(one="\x1a", other="\x1a\x1a")
@example(one="\x1a\0", other="\x1a\x1a0")
def test_text_comes_back_and_is_found(connection: sa.Connection, one: str, other: str) -> None:
    """Any text that Protobuf can hold comes back as it was, and is found by itself alone."""
    stored(connection, {"text": one}, {"text": other})
    assert connection.scalars(sa.select(values.c.text).order_by(values.c.number)).all() == [one, other]
    assert set(connection.scalars(sa.select(values.c.text).where(values.c.text == one))) == {one}
    assert set(connection.scalars(sa.select(values.c.text).where(values.c.text.in_([one, other])))) == {one, other}


@EXAMPLES
@given(moments=st.lists(MOMENTS, min_size=1))
@example(moments=[datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
@example(moments=[datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(1970, 1, 1, tzinfo=UTC)])
def test_moments_come_back_and_are_sorted(connection: sa.Connection, moments: list[datetime]) -> None:
    """Each comes back as the same microsecond, in UTC; they are sorted and compared as moments."""
    stored(connection, *({"moment": moment} for moment in moments))
    back = connection.scalars(sa.select(values.c.moment).order_by(values.c.moment)).all()
    assert back == sorted(moments)
    assert {moment.tzinfo for moment in back} == {UTC}
    before = connection.scalars(sa.select(values.c.moment).where(values.c.moment <= moments[0])).all()
    assert sorted(before) == [moment for moment in back if moment <= moments[0]]


NO_MOMENTS = {
    "has a time zone": datetime(2026, 1, 1),
    "out of range": datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
}


@pytest.mark.parametrize("complaint", NO_MOMENTS)
def test_what_is_no_moment_is_refused(connection: sa.Connection, complaint: str) -> None:
    """A time without a zone, and one that is beyond the years of UTC, which nobody could read again."""
    with pytest.raises(sa.exc.StatementError, match=complaint):
        stored(connection, {"moment": NO_MOMENTS[complaint]})


def test_nothing_is_nothing(connection: sa.Connection) -> None:
    """None is NULL in columns of both types."""
    stored(connection, {"text": None, "moment": None})
    assert connection.execute(sa.select(values.c.text, values.c.moment)).one() == (None, None)
    assert connection.scalar(sa.select(values.c.number).where(values.c.text.is_(None), values.c.moment.is_(None)))


def test_a_sequence_counts_up(connection: sa.Connection) -> None:
    """Each row gets a higher number than any before it, removed ones included, also beyond 32 bits."""
    connection.execute(values.insert(), [{"text": "a"}, {"text": "b"}])
    assert connection.scalars(sa.select(values.c.number).order_by(values.c.number)).all() == [1, 2]
    connection.execute(values.delete())
    assert connection.scalar(values.insert().returning(values.c.number), {"text": "c"}) == 3
    connection.execute(values.insert(), {"number": 2**40})
    assert connection.scalar(sa.select(sa.func.max(values.c.number))) == 2**40
