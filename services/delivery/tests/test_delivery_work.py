"""Delivery at work, on a clock that the test holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from delivery.domain import Address, DeliveryIdTaken, DeliveryState, Fleet, NotCancellable
from delivery.schema import changes
from delivery.store import Store, open_store
from sqlalchemy import NullPool, create_engine

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRIP = timedelta(seconds=600)
FLEET = Fleet(couriers=2, trip_seconds=600)
HOME = Address("1 Main St", "Springfield", "")
ON_POSTGRES = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
SHORTLY_SECONDS = 0.3  # in which a feed would tell what it has to tell


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as store:
        yield store


async def schedule(store: Store) -> str:
    return (await store.schedule(FLEET.delivery(str(uuid4()), HOME, NOW))).delivery_id


async def states(store: Store, *delivery_ids: str) -> list[str]:
    return [(await store.get(delivery_id)).state for delivery_id in delivery_ids]


async def test_a_delivery_s_time_never_goes_back(store: Store) -> None:
    """A round whose clock was read before a delivery came has it picked up no earlier than it came."""
    delivery_id = await schedule(store)
    await store.drive(FLEET, NOW - timedelta(seconds=1))
    delivery = await store.get(delivery_id)
    assert (delivery.state, delivery.update_time) == (DeliveryState.IN_TRANSIT, NOW)


async def test_a_delivery_waits_for_a_free_courier(store: Store) -> None:
    """With two couriers the third parcel waits, and goes when the first courier is back."""
    parcels = [await schedule(store) for _ in range(3)]
    assert (await store.drive(FLEET, NOW)).next_arrival == NOW + TRIP
    assert await states(store, *parcels) == ["IN_TRANSIT", "IN_TRANSIT", "SCHEDULED"]
    assert (await store.drive(FLEET, NOW + TRIP)).next_arrival == NOW + 2 * TRIP
    assert await states(store, *parcels) == ["DELIVERED", "DELIVERED", "IN_TRANSIT"]
    assert (await store.drive(FLEET, NOW + 2 * TRIP)).next_arrival is None
    assert await states(store, *parcels) == ["DELIVERED"] * 3


async def test_a_trip_survives_a_restart(database_url: str) -> None:
    """A courier who was on the road when delivery stopped arrives at the time that was set."""
    async with open_store(database_url) as store:
        parcel = await schedule(store)
        arrival = (await store.drive(FLEET, NOW)).next_arrival
    async with open_store(database_url) as store:
        assert arrival is not None
        assert (await store.drive(FLEET, NOW + TRIP / 2)).next_arrival == arrival
        await store.drive(FLEET, arrival)
        assert await states(store, parcel) == ["DELIVERED"]


async def test_a_cancelled_delivery_takes_no_courier(store: Store) -> None:
    """A parcel that was cancelled before pickup is passed over; cancelling it again changes nothing."""
    first, second = await schedule(store), await schedule(store)
    cancelled = await store.cancel(first, NOW)
    assert await store.cancel(first, NOW + TRIP) == cancelled
    await store.drive(Fleet(couriers=1, trip_seconds=600), NOW)
    assert await states(store, first, second) == ["CANCELLED", "IN_TRANSIT"]


async def test_what_a_courier_has_is_not_cancelled(store: Store) -> None:
    """Cancelling a parcel on the road, or one that was handed over, is refused with its state."""
    parcel = await schedule(store)
    for moment, state in ((NOW, "IN_TRANSIT"), (NOW + TRIP, "DELIVERED")):
        await store.drive(FLEET, moment)
        with pytest.raises(NotCancellable) as refused:
            await store.cancel(parcel, moment)
        assert refused.value.metadata == {"state": state}


async def test_the_feed_tells_each_change_as_it_was(store: Store) -> None:
    """The feed holds every state with its time, oldest first, and resumes after any of its entries."""
    parcel = await schedule(store)
    await store.drive(FLEET, NOW)
    await store.drive(FLEET, NOW + TRIP)
    async with aclosing(store.follow(0)) as feed:
        entries = [await anext(feed) for _ in range(3)]
    assert [entry.value.delivery_id for entry in entries] == [parcel] * 3
    assert [entry.value.state for entry in entries] == [
        DeliveryState.SCHEDULED,
        DeliveryState.IN_TRANSIT,
        DeliveryState.DELIVERED,
    ]
    assert entries[2].value.update_time == NOW + TRIP
    async with aclosing(store.follow(entries[0].sequence)) as feed:
        assert [await anext(feed), await anext(feed)] == entries[1:]


async def test_an_id_names_one_content(store: Store) -> None:
    """The same id with another address is refused, and the first delivery stays as it is."""
    parcel = await schedule(store)
    with pytest.raises(DeliveryIdTaken):
        await store.schedule(FLEET.delivery(parcel, Address("2 Main St", "Springfield", ""), NOW))
    assert (await store.get(parcel)).address == HOME


@ON_POSTGRES
async def test_replicas_drive_as_one(store: Store, database_url: str) -> None:
    """Two replicas that drive at once send no more couriers than there are, and tell each change once."""
    async with open_store(database_url) as other:
        parcels = [await schedule(store) for _ in range(5)]
        for trip in range(4):
            now = NOW + trip * TRIP
            await asyncio.gather(store.drive(FLEET, now), other.drive(FLEET, now), store.drive(FLEET, now))
            assert (await states(other, *parcels)).count("IN_TRANSIT") <= FLEET.couriers
    assert await states(store, *parcels) == ["DELIVERED"] * 5
    async with aclosing(store.follow(0)) as feed:
        told = [(await anext(feed)).value for _ in range(15)]
    assert len({(delivery.delivery_id, delivery.state) for delivery in told}) == 15


@ON_POSTGRES
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_reader_skips_no_change_that_commits_late(store: Store, database_url: str, end: str) -> None:
    """While an earlier number's transaction is open, the feed waits for it; then it goes on, with it or without."""
    first = await schedule(store)
    late = changes.insert().values(delivery_id=first, state=DeliveryState.IN_TRANSIT, update_time=NOW)
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.connect() as connection:
        number = connection.scalar(late.returning(changes.c.sequence))
        second = await schedule(store)  # has a later number, and is committed before
        async with aclosing(store.follow(0)) as feed:
            assert (await anext(feed)).value.delivery_id == first
            change = asyncio.ensure_future(anext(feed))
            await asyncio.wait({change}, timeout=SHORTLY_SECONDS)
            assert not change.done()
            third = await schedule(store)
            getattr(connection, end)()
            told = [await change, await anext(feed)]
            if end == "commit":
                assert told[0].sequence == number
                assert told[0].value.state is DeliveryState.IN_TRANSIT
                told = [told[1], await anext(feed)]
            assert [change.value.delivery_id for change in told] == [second, third]


@ON_POSTGRES
async def test_a_feed_tells_what_other_replicas_store(store: Store, database_url: str) -> None:
    """A reader at one replica, waiting at the feed's end, is told what another stores."""
    await schedule(store)
    async with aclosing(store.follow(0)) as feed, open_store(database_url) as other:
        await anext(feed)
        waiting = asyncio.ensure_future(anext(feed))
        parcel = await schedule(other)
        assert (await waiting).value.delivery_id == parcel


async def test_an_address_is_stored_as_it_is(store: Store) -> None:
    """Whatever a string of Protobuf can hold, NUL included."""
    address = Address("\0", "a\0b", "\x1a0")
    parcel = await store.schedule(FLEET.delivery(str(uuid4()), address, NOW))
    assert await store.get(parcel.delivery_id) == parcel
