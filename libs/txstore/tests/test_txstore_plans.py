"""What the library asks of a database costs the same however long a feed is: every statement goes by an index."""

from contextlib import aclosing
from datetime import timedelta

from txstore_tests.notes import NOW, changes, notes, open_notes

from tests.query_plans import asked, fill, slow, tables_of

STORED = 16_000


async def test_a_long_feed_costs_no_more(database_url: str) -> None:
    """Reading on from an entry, and compacting a part."""
    names = [{"note_id": f"{number:036}", "text": "", "update_time": NOW} for number in range(STORED // 4)]
    async with open_notes(database_url) as store:
        fill(database_url, {notes: names, changes: names * 4})
        with asked(database_url) as statements:
            assert await store.compact(STORED - 4, NOW + timedelta(days=1)) == STORED
            assert await store.compact(STORED // 2, NOW) is None
            async with aclosing(store.follow(STORED - 2)) as feed:
                assert (await anext(feed)).sequence == STORED - 1
        assert tables_of(statements) == {"note_changes"}
        assert len(statements) >= 3
        assert not slow(database_url, statements)
