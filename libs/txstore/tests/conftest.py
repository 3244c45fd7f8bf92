"""The sample store, on each kind of database."""

from collections.abc import AsyncIterator

import pytest
from txstore_tests.notes import Notes, open_notes


@pytest.fixture
async def notes(database_url: str) -> AsyncIterator[Notes]:
    async with open_notes(database_url) as notes:
        yield notes
