"""Durable stores on SQLite and Postgres for asyncio services: group commit, reads with limits, resumable feeds."""

from txstore.columns import SEQUENCE, AnyText, Instant
from txstore.database import Database, Limits
from txstore.errors import CannotOpen, StoreOverloaded, StoreUnavailable
from txstore.feed import Entry, Feed, keep_compacted
from txstore.notifier import Notifier
from txstore.opening import lock, open_database, secret_key
from txstore.writes import Write, one_by_one, together

__all__ = [
    "SEQUENCE",
    "AnyText",
    "CannotOpen",
    "Database",
    "Entry",
    "Feed",
    "Instant",
    "Limits",
    "Notifier",
    "StoreOverloaded",
    "StoreUnavailable",
    "Write",
    "keep_compacted",
    "lock",
    "one_by_one",
    "open_database",
    "secret_key",
    "together",
]
