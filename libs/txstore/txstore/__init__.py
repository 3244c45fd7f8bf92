"""Durable stores on SQLite and Postgres for asyncio services: group commit, reads with limits, resumable feeds."""
