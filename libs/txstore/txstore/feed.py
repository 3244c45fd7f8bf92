"""A feed: every change of some subjects, numbered, so that readers resume after the last number they have seen."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from txstore.database import Database
from txstore.notifier import Notifier
from txstore.writes import Write, one_by_one

T = TypeVar("T")

_PAGE = 256  # entries
_POLL_INTERVAL = timedelta(seconds=0.2)  # for what other replicas have stored
_GAP_POLL_INTERVAL = timedelta(seconds=0.02)  # a transaction that is about to end is waited for
_COMPACTION_INTERVAL = timedelta(hours=1)
_PAUSE_BETWEEN_PARTS = timedelta(seconds=0.05)  # in which others write
_PAUSE_AFTER_ERROR = timedelta(seconds=1)
_OLDEST_OPEN = {"sqlite": "0", "postgresql": "pg_snapshot_xmin(pg_current_snapshot())::text"}
_BARRIER = sa.text("SELECT pg_current_xact_id()::text")

_log = logging.getLogger("txstore")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One change."""

    sequence: int
    value: T


@dataclass(frozen=True)
class _Gap:
    """Numbers that the feed lacks: of transactions that are still open, or that were rolled back."""

    up_to: int
    """The highest number that was seen beyond."""
    barrier: int
    """Once each transaction before this one has ended, they will never come."""


class Feed(Generic[T]):
    """The feed in a table of changes: `sequence` counts up by itself (SEQUENCE), `update_time` is an Instant.

    On SQLite the table wants `sqlite_autoincrement=True`, so that no number is ever given twice. An index of the
    subject and `sequence` serves compaction.

    A transaction stores a change after the subject that it is of. Postgres knows a transaction by its first write: one
    whose first write were the change itself would not be waited for in the moment after it has taken its number.
    """

    def __init__(
        self, table: sa.Table, *, subject: sa.Column[Any], query: "sa.Select[Any]", value: "Callable[[sa.Row[Any]], T]"
    ) -> None:
        """`query` selects what `value` makes an entry's value of; `subject` is the column of what changes."""
        sequence = table.c.sequence
        after: sa.BindParameter[int] = sa.bindparam("after")
        page = query.add_columns(sequence).where(sequence > after).order_by(sequence).limit(_PAGE)
        later = table.alias("later")
        self._value = value
        self._entries = {
            dialect: page.add_columns(sa.literal_column(oldest_open).label("oldest_open"))
            for dialect, oldest_open in _OLDEST_OPEN.items()
        }
        self._part = sa.select(sequence, table.c.update_time).where(sequence > after).order_by(sequence).limit(_PAGE)
        self._remove_superseded = table.delete().where(
            sequence > after,
            sequence <= sa.bindparam("last"),
            sa.exists().where(later.c[subject.name] == subject, later.c.sequence > sequence),
        )
        self.compact: Write[[int, datetime], int | None] = one_by_one(self._compact)
        """Removes superseded entries from a part of the feed, and returns where the next part begins.

        The part begins after a sequence and is of changes older than a moment; None is returned after the last. Each
        subject's last change stays, so that a reader that has seen none of them still learns how it is.
        """

    async def follow(self, database: Database, changed: Notifier, sequence: int) -> AsyncGenerator[Entry[T], None]:
        """The entries after `sequence`, oldest first, without an end. `changed` tells of each commit in this process.

        Postgres hands out numbers before their transactions commit, in whatever order that may be: a missing one is
        waited for while it may still come, so that no change is ever skipped.
        """
        gap: _Gap | None = None
        while True:
            seen = changed.version
            entries, oldest_open = await database.read(self._after, sequence)
            for entry in entries:
                missing = database.shared and entry.sequence != sequence + 1
                if missing and (gap is None or entry.sequence > gap.up_to):
                    gap = _Gap(entries[-1].sequence, await database.read(_barrier))
                    break
                if missing and gap is not None and oldest_open < gap.barrier:
                    await changed.wait_beyond(seen, _GAP_POLL_INTERVAL)
                    break
                yield entry
                sequence = entry.sequence
            if not entries:
                await changed.wait_beyond(seen, _POLL_INTERVAL if database.shared else database.poll_interval)

    def _after(self, connection: sa.Connection, sequence: int) -> tuple[list[Entry[T]], int]:
        """A page of entries, and the oldest transaction that was open when it was read."""
        rows = connection.execute(self._entries[connection.dialect.name], {"after": sequence}).all()
        entries = [Entry(row.sequence, self._value(row)) for row in rows]
        return entries, int(rows[0].oldest_open) if rows else 0

    def _compact(self, connection: sa.Connection, after: int, before: datetime) -> int | None:
        last = None
        for sequence, time in connection.execute(self._part, {"after": after}):
            if time >= before:
                break
            last = sequence
        if last is not None:
            connection.execute(self._remove_superseded, {"after": after, "last": last})
        return last


async def keep_compacted(
    compact: Callable[[int, datetime], Awaitable[int | None]], retention: timedelta, clock: Callable[[], datetime]
) -> None:
    """Compacts a feed for ever, part by part and again each hour: what is superseded and older than `retention` goes.

    `compact` writes a `Feed.compact`. Each round begins at the first entry: one that was its subject's last when it was
    passed may be superseded by now.
    """
    after = 0
    while True:
        try:
            last = await compact(after, clock() - retention)
            after = last or 0
            pause = _COMPACTION_INTERVAL if last is None else _PAUSE_BETWEEN_PARTS
        except Exception:
            pause = _PAUSE_AFTER_ERROR
            _log.exception("compaction failed; trying again in %s", pause)
        await asyncio.sleep(pause.total_seconds())


def _barrier(connection: sa.Connection) -> int:
    """The number of a new transaction: every one that is open now has a smaller one."""
    return int(connection.execute(_BARRIER).scalar_one())
