"""What kitchen and delivery promise of their work and its feed, on each database."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial

import pytest
from sqlalchemy import NullPool, create_engine, text

from tests.stores.kinds import CAPACITY, NOW, PROVIDERS, WORK, Patient, Provider, Store, Thing, two_replicas

ROUNDS = 10
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
"""Transactions that wait for another one."""
LIMIT_SECONDS = 10.0
PAGES = 600  # entries: more than two pages of a feed

pytestmark = pytest.mark.parametrize("kind", PROVIDERS, ids=lambda kind: kind.service)


@pytest.fixture
async def replicas(kind: Provider, database_url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two on Postgres; on SQLite, which is for one alone, the same twice."""
    if database_url.startswith("sqlite"):
        async with kind.open(database_url, "") as store:
            yield Patient(store), Patient(store)
    else:
        async with two_replicas(kind, database_url) as replicas:
            yield replicas


@pytest.fixture
def store(replicas: tuple[Store, Store]) -> Store:
    return replicas[0]


async def told(kind: Provider, store: Store, ids: Sequence[str], after: int = 0) -> list[tuple[int, Thing]]:
    """What the feed tells of some things after a sequence, to its end, which something new marks."""
    end, entries = await kind.add(store, kind.make()), []
    async with aclosing(store.follow(after)) as feed:
        async for entry in feed:
            if entry.value == end:
                break
            if kind.id_of(entry.value) in ids:
                entries.append((entry.sequence, entry.value))
    return entries


async def lives(kind: Provider, store: Store, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The states that the feed tells of each thing, in order; the last is the one that it is in."""
    lives: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    for _, thing in await told(kind, store, ids):
        lives[kind.id_of(thing)] += (thing.state,)
    for id_ in ids:
        assert (await store.get(id_)).state == lives[id_][-1]
    return lives


async def test_a_compacted_feed_tells_how_each_thing_is(kind: Provider, store: Store) -> None:
    """What is superseded and old goes; who resumes before it misses no last change, who is beyond is told nothing."""
    ids = [kind.id_of(await kind.add(store, kind.make())) for _ in range(CAPACITY + 1)]
    for number in range(3):  # the last one waits for the others
        await kind.work(store, NOW + number * WORK)
    before = await told(kind, store, ids)
    assert await store.compact(0, NOW) is None
    assert await told(kind, store, ids) == before
    await store.compact(0, NOW + WORK)
    recent = [(sequence, thing) for sequence, thing in before if thing.update_time >= NOW + WORK]
    assert await told(kind, store, ids) == recent
    last = await store.compact(0, NOW + 3 * WORK)
    assert await store.compact(last, NOW + 3 * WORK) is None
    ends = [(sequence, thing) for sequence, thing in before if thing.state == kind.states[-1]]
    assert {kind.id_of(thing) for _, thing in ends} == set(ids)
    assert await told(kind, store, ids) == ends
    assert await told(kind, store, ids, after=before[1][0]) == ends
    assert await told(kind, store, ids, after=ends[-1][0]) == []


async def test_a_long_feed_is_told_whole(kind: Provider, store: Store) -> None:
    """Page by page, from its beginning and from any entry."""
    things = await asyncio.gather(*(kind.add(store, kind.make()) for _ in range(PAGES // 2)))
    ids = [kind.id_of(thing) for thing in things]
    await asyncio.gather(*(store.cancel(id_, NOW) for id_ in ids))
    entries = await told(kind, store, ids)
    sequences = [sequence for sequence, _ in entries]
    assert sequences == sorted(set(sequences))
    assert set((await lives(kind, store, ids)).values()) == {(kind.states[0], "CANCELLED")}
    assert await told(kind, store, ids, after=sequences[99]) == entries[100:]


async def test_what_is_added_many_times_at_once_is_done_once(kind: Provider, replicas: tuple[Store, Store]) -> None:
    """One thing added by many callers at once is told once, and takes no more room than one."""
    store, thing = replicas[0], kind.make()
    ids = [kind.id_of(thing)]
    assert await asyncio.gather(*(kind.add(replica, thing) for replica in replicas * 10)) == [thing] * 20
    others = [kind.id_of(await kind.add(store, kind.make())) for _ in range(CAPACITY)]
    await kind.work(store, NOW)
    assert [(await store.get(id_)).state for id_ in others] == [*[kind.states[1]] * (CAPACITY - 1), kind.states[0]]
    await kind.work(store, NOW + WORK)
    assert await lives(kind, store, ids) == {ids[0]: kind.states}


async def settle(call: Callable[[], Awaitable[object]], refusal: type[Exception]) -> None:
    """Calls, and takes a refusal for an answer."""
    with suppress(refusal):
        await call()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("first", ["cancel", "work"])
async def test_work_and_cancellation_wait_for_each_other(
    kind: Provider, replicas: tuple[Store, Store], database_url: str, first: str
) -> None:
    """Whichever is under way first, at one replica, the other begins with what came of it: the thing has one life."""
    one, other = replicas
    id_, now = kind.id_of(await kind.add(one, kind.make())), NOW
    if kind.cancellable == 2:  # it is cancelled when it is done, not when it is begun
        await kind.work(one, now)
        now += WORK
    calls = {"cancel": partial(other.cancel, id_, now), "work": partial(kind.work, one, now)}
    with create_engine(database_url, poolclass=NullPool).connect() as connection:
        connection.execute(kind.table.select().where(kind.table.c[f"{kind.noun}_id"] == id_).with_for_update())
        under_way = []
        for number, name in enumerate(sorted(calls, key=lambda name: name != first), 1):
            under_way.append(asyncio.create_task(settle(calls[name], kind.not_cancellable)))
            async with asyncio.timeout(LIMIT_SECONDS):
                while connection.scalar(WAITING) < number:  # noqa: ASYNC110 # Postgres tells by itself nothing
                    await asyncio.sleep(0.01)
    await asyncio.gather(*under_way)
    await kind.work(one, now + WORK)
    assert set((await lives(kind, one, [id_])).values()) <= kind.lives


async def test_what_is_cancelled_while_it_is_worked_on_has_one_life(
    kind: Provider, replicas: tuple[Store, Store]
) -> None:
    """It is done or cancelled, not both, and its feed tells so; and there is never more at work than there is room."""
    ids: list[str] = []
    for number in range(ROUNDS):
        one, other = replicas[:: (-1) ** number]
        now = NOW + number * WORK
        ids += [kind.id_of(await kind.add(one, kind.make())) for _ in range(2 * CAPACITY)]
        live = [id_ for id_ in ids if (await one.get(id_)).state in kind.states[: kind.cancellable]]
        calls = [partial(kind.work, replica, now) for replica in replicas]
        calls += [partial(other.cancel, id_, now) for id_ in live[: 1 + number % 3]]
        await asyncio.gather(*(settle(call, kind.not_cancellable) for call in calls))
        at_work = [id_ for id_ in ids if (await one.get(id_)).state == kind.states[1]]
        assert len(at_work) <= CAPACITY
    for number in range(len(ids)):
        await kind.work(replicas[0], now + number * WORK)
    assert set((await lives(kind, replicas[0], ids)).values()) <= kind.lives
