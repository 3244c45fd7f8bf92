"""The kitchen at work, on a clock that the test holds."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from kitchen.domain import Item, Kitchen, NotCancellable, Step, TicketIdTaken, TicketState
from kitchen.schema import changes, portions
from kitchen.store import Store, open_store
from sqlalchemy import NullPool, create_engine, select

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KITCHEN = Kitchen(
    stations={"counter": 5, "oven": 2},
    recipes={
        "pizza": (Step("top", "counter", 60), Step("bake", "oven", 300)),
        "salad": (Step("toss", "counter", 30),),
    },
)
ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
SHORTLY_SECONDS = 0.3  # in which a feed would tell what it has to tell


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as store:
        yield store


async def submit(store: Store, **quantities: int) -> str:
    items = tuple(Item(sku, quantity) for sku, quantity in quantities.items())
    return (await store.submit(KITCHEN, KITCHEN.ticket(str(uuid4()), items, NOW))).ticket_id


def busy(url: str) -> Counter[str]:
    """How many portions are at work at each station."""
    query = select(portions.c.station).where(portions.c.done_at.is_not(None))
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return Counter(connection.scalars(query))


async def test_two_ovens_bake_two_at_a_time(store: Store, database_url: str) -> None:
    """Of five portions two are in the ovens, the others wait, and the ticket is ready after the third round."""
    ticket_id = await submit(store, pizza=5)
    assert (await store.cook(KITCHEN, NOW)).next_done == NOW + timedelta(seconds=60)
    assert busy(database_url) == {"counter": 5}
    done = NOW + timedelta(seconds=60)
    for _round in range(3):
        assert (await store.get(ticket_id)).state is TicketState.COOKING
        done = (await store.cook(KITCHEN, done)).next_done or done
        assert busy(database_url)["oven"] in (1, 2)
    assert busy(database_url)["oven"] == 1
    assert (await store.cook(KITCHEN, done)).next_done is None
    ticket = await store.get(ticket_id)
    assert (ticket.state, ticket.update_time) == (TicketState.READY, NOW + timedelta(seconds=60 + 3 * 300))


async def test_a_ticket_s_time_never_goes_back(store: Store) -> None:
    """A round whose clock was read before a ticket came begins it no earlier than it came."""
    ticket_id = await submit(store, salad=1)
    await store.cook(KITCHEN, NOW - timedelta(seconds=1))
    ticket = await store.get(ticket_id)
    assert (ticket.state, ticket.update_time) == (TicketState.COOKING, NOW)


async def test_first_come_first_served(store: Store) -> None:
    """A ticket that came later is not begun while the earlier ones fill the station."""
    first, second = await submit(store, salad=5), await submit(store, salad=1)
    await store.cook(KITCHEN, NOW)
    assert (await store.get(first)).state is TicketState.COOKING
    assert (await store.get(second)).state is TicketState.QUEUED


async def test_progress_survives_a_restart(database_url: str) -> None:
    """What was in the oven when the kitchen stopped is taken out when it is done, not begun again."""
    async with open_store(database_url) as store:
        ticket_id = await submit(store, pizza=1)
        await store.cook(KITCHEN, NOW)
        done = (await store.cook(KITCHEN, NOW + timedelta(seconds=60))).next_done
    async with open_store(database_url) as store:
        assert done == NOW + timedelta(seconds=360)
        assert (await store.cook(KITCHEN, NOW + timedelta(seconds=100))).next_done == done
        await store.cook(KITCHEN, done)
        assert (await store.get(ticket_id)).state is TicketState.READY


async def test_a_changed_recipe_is_for_new_tickets(store: Store) -> None:
    """A ticket is made by the recipe of the time when it was submitted."""
    ticket_id = await submit(store, salad=1)
    longer = Kitchen(KITCHEN.stations, {"salad": (Step("toss", "counter", 30), Step("rest", "counter", 600))})
    done = (await store.cook(longer, NOW)).next_done
    assert done == NOW + timedelta(seconds=30)
    await store.cook(longer, done)
    assert (await store.get(ticket_id)).state is TicketState.READY


async def test_cancelling_frees_the_stations(store: Store, database_url: str) -> None:
    """A cancelled ticket's portions leave their stations to those who wait."""
    first, second = await submit(store, salad=5), await submit(store, salad=2)
    await store.cook(KITCHEN, NOW)
    assert (await store.cancel(first, NOW)).state is TicketState.CANCELLED
    await store.cook(KITCHEN, NOW)
    assert busy(database_url) == {"counter": 2}
    assert (await store.get(second)).state is TicketState.COOKING


async def test_a_ready_ticket_is_not_cancelled(store: Store) -> None:
    """Cancelling what is READY is refused with the state."""
    ticket_id = await submit(store, salad=1)
    await store.cook(KITCHEN, NOW)
    await store.cook(KITCHEN, NOW + timedelta(seconds=30))
    with pytest.raises(NotCancellable) as refused:
        await store.cancel(ticket_id, NOW)
    assert refused.value.metadata == {"state": "READY"}


async def test_the_feed_tells_each_change_as_it_was(store: Store) -> None:
    """The feed holds every state with its time, oldest first, and resumes after any of its entries."""
    ticket_id = await submit(store, salad=1)
    await store.cook(KITCHEN, NOW)
    await store.cook(KITCHEN, NOW + timedelta(seconds=30))
    async with aclosing(store.follow(0)) as feed:
        entries = [await anext(feed) for _ in range(3)]
    assert [(entry.value.ticket_id, entry.value.state) for entry in entries] == [
        (ticket_id, TicketState.QUEUED),
        (ticket_id, TicketState.COOKING),
        (ticket_id, TicketState.READY),
    ]
    assert entries[2].value.update_time == NOW + timedelta(seconds=30)
    async with aclosing(store.follow(entries[0].sequence)) as feed:
        assert [await anext(feed), await anext(feed)] == entries[1:]


async def test_an_id_names_one_content(store: Store) -> None:
    """The same id with other items is refused, and the first ticket stays as it is."""
    ticket_id = await submit(store, salad=1)
    with pytest.raises(TicketIdTaken):
        await store.submit(KITCHEN, KITCHEN.ticket(ticket_id, (Item("pizza", 1),), NOW))
    assert (await store.get(ticket_id)).items == (Item("salad", 1),)


@ON_POSTGRES
async def test_replicas_cook_as_one(store: Store, database_url: str, tmp_path: Path) -> None:
    """Two replicas that cook and cancel at once do at every minute what one does, and tell each change once."""
    async with open_store(database_url) as other, open_store(f"sqlite:///{tmp_path}/one.db") as alone:
        ids = [await submit(store, pizza=3) for _ in range(4)]
        same = [await submit(alone, pizza=3) for _ in range(4)]
        for minute in range(30):
            now = NOW + timedelta(seconds=60 * minute)
            await alone.cook(KITCHEN, now)
            cooking = [replica.cook(KITCHEN, now) for replica in (store, other, store)]
            cancelling = [replica.cancel(ids[3], now) for replica in (other, store)] if minute == 1 else []
            await asyncio.gather(*cooking, *cancelling)
            if cancelling:
                await alone.cancel(same[3], now)
            assert busy(database_url) == busy(f"sqlite:///{tmp_path}/one.db")
            states = [(await other.get(ticket_id)).state for ticket_id in ids]
            assert states == [(await alone.get(ticket_id)).state for ticket_id in same]
    assert states[3] is TicketState.CANCELLED
    end, told = await submit(store, salad=1), Counter[tuple[str, TicketState]]()
    async with aclosing(store.follow(0)) as feed:
        async for entry in feed:
            if entry.value.ticket_id == end:
                break
            told[entry.value.ticket_id, entry.value.state] += 1
    assert set(told.values()) == {1}
    assert set(zip(ids, states, strict=True)) <= told.keys()


@ON_POSTGRES
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_reader_skips_no_change_that_commits_late(store: Store, database_url: str, end: str) -> None:
    """While an earlier number's transaction is open, the feed waits for it; then it goes on, with it or without."""
    first = await submit(store, salad=1)
    late = changes.insert().values(ticket_id=first, state=TicketState.COOKING, update_time=NOW)
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.connect() as connection:
        number = connection.scalar(late.returning(changes.c.sequence))
        second = await submit(store, salad=1)  # has a later number, and is committed before
        async with aclosing(store.follow(0)) as feed:
            assert (await anext(feed)).value.ticket_id == first
            change = asyncio.ensure_future(anext(feed))
            await asyncio.wait({change}, timeout=SHORTLY_SECONDS)
            assert not change.done()
            third = await submit(store, salad=1)
            getattr(connection, end)()
            told = [await change, await anext(feed)]
            if end == "commit":
                assert told[0].sequence == number
                assert told[0].value.state is TicketState.COOKING
                told = [told[1], await anext(feed)]
            assert [change.value.ticket_id for change in told] == [second, third]


@ON_POSTGRES
async def test_a_feed_tells_what_other_replicas_store(store: Store, database_url: str) -> None:
    """A reader at one replica, waiting at the feed's end, is told what another stores."""
    await submit(store, salad=1)
    async with aclosing(store.follow(0)) as feed, open_store(database_url) as other:
        await anext(feed)
        waiting = asyncio.ensure_future(anext(feed))
        ticket_id = await submit(other, salad=1)
        assert (await waiting).value.ticket_id == ticket_id
