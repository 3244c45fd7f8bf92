"""Orders as they are stored, by one replica or by several that share a database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from grpcmesh import StartError
from order.domain import Address, Line, Menu, MenuItem, Money, Order, OrderState, Preparation, Step
from order.schema import orders
from order.store import FeedLost, Store, open_store
from txstore import StoreUnavailable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
LEASE = timedelta(seconds=3)
MENU = Menu((MenuItem("margherita", "Pizza Margherita", Money("EUR", 8, 500_000_000)),))
HOME = Address("1 Main St", "Springfield", "")
TOKEN = "a token"  # noqa: S105 # no password
ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def new(customer_id: str = "ada", order_id: str = "", quantity: int = 1, address: Address = HOME) -> Order:
    return MENU.order(order_id or str(uuid4()), customer_id, (Line("margherita", quantity),), address, NOW)


def attempted(order: Order) -> Order:
    return replace(order, attempts=order.attempts + 1)


def cooked(order: Order) -> Order:
    return order.preparation_reported(Preparation.COOKING, LATER)


@pytest.fixture
async def replicas(database_url: str) -> AsyncIterator[list[Store]]:
    """Two that share a database. Those on Postgres start at the same moment, on an empty one."""
    async with AsyncExitStack() as stack:
        opening = [stack.enter_async_context(open_store(database_url, name)) for name in ("one", "two")]
        if database_url.startswith("sqlite"):  # is for one replica, and its file is not made by two
            yield [await store for store in opening]
        else:
            yield await asyncio.gather(*opening)


@pytest.fixture
def store(replicas: list[Store]) -> Store:
    return replicas[0]


async def test_a_move_that_fails_fails_alone(store: Store) -> None:
    """Among moves made at once, one that raises stores nothing, and all others are stored."""
    placed = await asyncio.gather(*(store.place(new()) for _ in range(5)))

    def refuse(_: Order) -> Order:
        raise ValueError("no")

    moves = [store.update(order.order_id, lambda order: order.cancel(LATER)) for order in placed[:4]]
    responses = await asyncio.gather(*moves, store.update(placed[4].order_id, refuse), return_exceptions=True)
    assert isinstance(responses[4], ValueError)
    states = [(await store.get(order.order_id)).state for order in placed]
    assert states == [OrderState.CANCELLED] * 4 + [OrderState.PLACED]


async def test_news_that_fail_stay_unread(store: Store) -> None:
    """Where a move raises, neither it nor how far its feed was read is stored, also beside moves that are."""
    order, other = await store.place(new()), await store.place(new())
    assert await store.take_feed("kitchen", NOW, LATER) == ""

    def refuse(_: Order) -> Order:
        raise ValueError("no")

    failed, moved = await asyncio.gather(
        store.update(order.order_id, refuse, feed="kitchen", token=TOKEN),
        store.update(other.order_id, attempted),
        return_exceptions=True,
    )
    assert isinstance(failed, ValueError)
    assert moved == attempted(other)
    assert await store.take_feed("kitchen", NOW, LATER) == ""


async def test_no_move_is_lost(replicas: list[Store]) -> None:
    """Moves of one order made at once, by both replicas, each build on the one before."""
    order = await replicas[0].place(new())
    await asyncio.gather(*(replica.update(order.order_id, attempted) for replica in replicas * 20))
    assert (await replicas[0].get(order.order_id)).attempts == 40


async def test_a_due_order_is_taken_once(replicas: list[Store]) -> None:
    """Two replicas that look for due orders at once share them, and take none twice."""
    placed = await asyncio.gather(*(replicas[0].place(new()) for _ in range(60)))
    rounds = await asyncio.gather(*(replica.take_due(NOW, LATER, 10) for replica in replicas * 3))
    taken = [order.order_id for orders, _ in rounds for order in orders]
    assert len(taken) == len(set(taken))
    while more := (await replicas[0].take_due(NOW, LATER, 10))[0]:  # those that the other held at the time
        taken += [order.order_id for order in more]
    assert sorted(taken) == sorted(order.order_id for order in placed)
    assert await replicas[1].take_due(NOW, LATER, 10) == ([], LATER)


@ON_POSTGRES
async def test_a_watch_sees_every_replica(replicas: list[Store]) -> None:
    """A watch at one replica tells of moves that another has made."""
    order = await replicas[0].place(new())
    async with aclosing(replicas[1].watch(order.order_id)) as watch:
        assert (await anext(watch)).state is OrderState.PLACED
        await replicas[0].update(order.order_id, cooked)
        assert (await anext(watch)).state is OrderState.PREPARING


@ON_POSTGRES
async def test_one_replica_reads_a_feed(replicas: list[Store]) -> None:
    """A feed is one replica's until its lease ends or it leaves; the next one goes on from the last token."""
    one, two = replicas
    order = await one.place(new())
    assert await one.take_feed("kitchen", NOW, NOW + LEASE) == ""
    assert await two.take_feed("kitchen", NOW, NOW + LEASE) is None
    assert await two.take_feed("delivery", NOW, NOW + LEASE) == ""
    await one.update(order.order_id, lambda order: order, feed="kitchen", token=TOKEN)
    assert await one.take_feed("kitchen", NOW + LEASE / 2, NOW + 2 * LEASE) == TOKEN
    assert await two.take_feed("kitchen", NOW + LEASE, NOW + 2 * LEASE) is None
    assert await two.take_feed("kitchen", NOW + 2 * LEASE, NOW + 3 * LEASE) == TOKEN
    await two.leave_feeds()
    assert await one.take_feed("kitchen", NOW, NOW + LEASE) == TOKEN


@ON_POSTGRES
async def test_a_clock_set_back_holds_no_feed(replicas: list[Store]) -> None:
    """A lease that was taken by a clock far ahead is no longer than any other."""
    one, two = replicas
    ahead = NOW + timedelta(days=1)
    await one.take_feed("kitchen", ahead, ahead + LEASE)
    assert await two.take_feed("kitchen", NOW, NOW + LEASE) == ""


@ON_POSTGRES
async def test_a_replica_that_lost_a_feed_stores_nothing_of_it(replicas: list[Store]) -> None:
    """Neither the move nor the token, also among moves of others that are stored."""
    one, two = replicas
    order, other = await one.place(new()), await one.place(new())
    await one.take_feed("kitchen", NOW, NOW + LEASE)
    await two.take_feed("kitchen", NOW + LEASE, NOW + 2 * LEASE)
    lost, stored = await asyncio.gather(
        one.update(order.order_id, cooked, feed="kitchen", token=TOKEN),
        one.update(other.order_id, cooked),
        return_exceptions=True,
    )
    assert isinstance(lost, FeedLost)
    assert isinstance(stored, Order)
    assert (await one.get(order.order_id)).state is OrderState.PLACED
    with pytest.raises(FeedLost):
        await one.restart_feed("kitchen", Step.CHECK_TICKET, NOW)
    assert await two.take_feed("kitchen", NOW + LEASE, NOW + 2 * LEASE) == ""


@pytest.mark.parametrize("text", ["\0", "\x1a0", "\x1a\x1a0\0", "a\\0b"], ids=ascii)
async def test_text_is_stored_as_it_is(store: Store, text: str) -> None:
    """Whatever a string of Protobuf can hold comes back as it was, and is found by it alone."""
    order = await store.place(new(customer_id=text, address=Address(text, text, text)))
    await store.place(new(customer_id="\x1a0" if text != "\x1a0" else "\0"))
    assert await store.list_orders(text, 10, None) == [order]
    failed = await store.update(order.order_id, lambda order: order.rejected(Step.SUBMIT_TICKET, text, LATER))
    assert await store.get(order.order_id) == failed
    assert failed is not None
    assert failed.failure == text
    await store.take_feed("kitchen", NOW, NOW + LEASE)
    await store.update(order.order_id, lambda order: order, feed="kitchen", token=text)
    assert await store.take_feed("kitchen", NOW, NOW + LEASE) == text


@ON_POSTGRES
async def test_a_row_that_another_holds_stalls_no_other(store: Store, database_url: str) -> None:
    """While a stopped replica holds an order, moves of it are UNAVAILABLE soon, and others go on meanwhile."""
    held = await store.place(new())
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as other:
        other.execute(sa.select(orders).where(orders.c.order_id == held.order_id).with_for_update())
        moved, *placed = await asyncio.gather(
            store.update(held.order_id, attempted), *(store.place(new()) for _ in range(10)), return_exceptions=True
        )
    assert isinstance(moved, StoreUnavailable)
    assert all(isinstance(order, Order) for order in placed)
    assert await store.update(held.order_id, attempted) == attempted(held)


async def test_a_newer_database_is_refused(database_url: str) -> None:
    """In one line, without the password of its URL."""
    async with open_store(database_url):
        pass
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartError, match="another version") as refused:
        async with open_store(database_url):
            pass
    assert "\n" not in str(refused.value)


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """A corrupt file, a server that is not there and a URL of another kind: each in one line."""
    (tmp_path / "corrupt.db").write_bytes(b"\0" * 8192)
    for url, complaint in (
        (f"sqlite:///{tmp_path}/corrupt.db", "not a database"),
        ("postgresql://order:secret@127.0.0.1:1/order", "refused"),
        ("mysql://localhost/order", "mysql"),
        ("gibberish", "URL"),
    ):
        with pytest.raises(StartError, match=complaint) as refused:
            async with open_store(url):
                pass
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)


async def test_an_order_that_cannot_be_read_keeps_nobody_waiting(store: Store, database_url: str) -> None:
    """A row that makes no sense is set aside as FAILED, with its reason; those beside it are taken."""
    broken, sound = await store.place(new()), await store.place(new())
    engine = sa.create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(orders.update().where(orders.c.order_id == broken.order_id).values(step="JUGGLE"))
    engine.dispose()
    taken, _ = await store.take_due(LATER, LATER + LEASE, 10)
    assert [order.order_id for order in taken] == [sound.order_id]
    failed = await store.get(broken.order_id)
    assert (failed.state, failed.due) == (OrderState.FAILED, None)
    assert "JUGGLE" in failed.failure


async def test_a_skipped_entry_is_read(store: Store) -> None:
    """An entry of a feed that is skipped is not read again."""
    assert await store.take_feed("kitchen", NOW, LATER) == ""
    await store.skip("kitchen", TOKEN)
    assert await store.take_feed("kitchen", NOW, LATER) == TOKEN
