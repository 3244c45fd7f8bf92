"""What the stores of all three services promise, on each database: to many callers at once, and to several replicas."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from txstore import StoreOverloaded

from tests.stores.kinds import KINDS, Kind, Store, two_replicas

pytestmark = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.service)


@pytest.fixture
async def replicas(kind: Kind, database_url: str) -> AsyncIterator[tuple[Store, Store]]:
    async with two_replicas(kind, database_url) as replicas:
        yield replicas


@contextmanager
def commits() -> Iterator[Counter[str]]:
    """Counts what ends transactions meanwhile."""
    seen: Counter[str] = Counter()

    def count(_: sa.Connection) -> None:
        seen["commits"] += 1

    sa.event.listen(sa.Engine, "commit", count)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "commit", count)


async def test_replicas_sign_alike(kind: Kind, replicas: tuple[Store, Store]) -> None:
    """Whoever starts first, both have the one key of their database."""
    assert replicas[0].key == replicas[1].key


async def test_many_share_a_commit(kind: Kind, replicas: tuple[Store, Store]) -> None:
    """A hundred things added at once are all stored, with far fewer commits than things."""
    store, things = replicas[0], [kind.make() for _ in range(100)]
    with commits() as seen:
        assert await asyncio.gather(*(kind.add(store, thing) for thing in things)) == things
    assert 0 < seen["commits"] <= 20
    assert [await store.get(kind.id_of(thing)) for thing in things] == things


async def test_what_was_answered_is_seen_by_all(kind: Kind, replicas: tuple[Store, Store]) -> None:
    """Each thing whose adding was answered, another connection finds at that very moment."""

    async def add_and_find() -> None:
        thing = await kind.add(replicas[0], kind.make())
        assert await replicas[1].get(kind.id_of(thing)) == thing

    await asyncio.gather(*(add_and_find() for _ in range(50)))


async def test_one_of_many_takes_an_id(kind: Kind, replicas: tuple[Store, Store]) -> None:
    """Of two contents added with one id at once, by both replicas, one is stored and the other refused."""
    id_ = str(uuid4())
    adding = [kind.add(replica, kind.new(id_, content)) for replica in replicas for content in (1, 2, 1, 2)]
    responses = await asyncio.gather(*adding, return_exceptions=True)
    stored = await replicas[0].get(id_)
    assert [response for response in responses if not isinstance(response, kind.taken)] == [stored] * 4


async def test_one_that_fails_fails_alone(kind: Kind, replicas: tuple[Store, Store]) -> None:
    """Among things added at once, one that the database refuses is refused, and all others are stored."""
    store, things, bad = replicas[0], [kind.make() for _ in range(20)], None
    things[7] = replace(things[7], traceparent=bad)
    responses: list[Any] = await asyncio.gather(*(kind.add(store, thing) for thing in things), return_exceptions=True)
    assert isinstance(responses[7], sa.exc.IntegrityError)
    del responses[7], things[7]
    assert responses == things
    assert [await store.get(kind.id_of(thing)) for thing in things] == things


async def test_more_than_can_be_done_is_refused_at_once(kind: Kind, replicas: tuple[Store, Store]) -> None:
    """Of very many things added at once some are refused as too many; all that were not are stored."""
    store, things = replicas[0], [kind.make() for _ in range(1200)]
    responses = await asyncio.gather(*(kind.add(store, thing) for thing in things), return_exceptions=True)
    refused = [response for response in responses if isinstance(response, Exception)]
    assert 0 < len(refused) < len(things)
    assert {type(response) for response in refused} == {StoreOverloaded}
    stored = [response for response in responses if not isinstance(response, Exception)]
    for some in (stored[:100], stored[-100:]):
        assert await asyncio.gather(*(store.get(kind.id_of(thing)) for thing in some)) == some
