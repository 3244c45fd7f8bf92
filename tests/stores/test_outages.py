"""What callers get while a database is away, stalled or full, and that all goes on by itself afterwards."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pizza.order.v1 import order_service_pb2 as pb
from txstore import StoreUnavailable

from tests.contract.contract import refusal_of, refused
from tests.contract.customer import Customer
from tests.contract.launch import DATA, Running, eventually, running
from tests.contract.providers import KINDS as PROVIDERS
from tests.contract.providers import Provider
from tests.postgres import DATABASES, MISSING, Postgres, postgres
from tests.stores.kinds import KINDS, Kind, Store, Thing

IDLE = {"ORDER_HOLD": "1e6", "DELIVERY_FLEET": f"{DATA}/busy_fleet.toml"}
"""Has services leave alone what they store."""
STOP_LIMIT_SECONDS = 30.0

Stores = Sequence[tuple[Kind, Store]]


@pytest.fixture(scope="module")
def victim() -> Iterator[Postgres]:
    """A Postgres that nobody else uses."""
    if "postgresql" not in DATABASES:
        pytest.skip(MISSING)
    with postgres() as cluster:
        yield cluster


# The stores, which are all struck at once.


@pytest.fixture
async def stores(victim: Postgres) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        yield [(kind, await stack.enter_async_context(kind.open(victim.database(), "one"))) for kind in KINDS]


async def until_stored(kind: Kind, store: Store, thing: Thing) -> None:
    """Adds a thing again and again, as its caller would."""
    async with asyncio.timeout(15):
        while True:
            try:
                assert await kind.add(store, thing) == thing
            except StoreUnavailable:
                await asyncio.sleep(0.05)  # as its caller's backoff
            else:
                return


async def test_a_stalled_database_holds_nobody_up(victim: Postgres, stores: Stores) -> None:
    """Calls are soon UNAVAILABLE while Postgres is stopped, all of them, and are served once it goes on."""
    during = {kind.service: [kind.make() for _ in range(50)] for kind in KINDS}
    before = {kind.service: await kind.add(store, kind.make()) for kind, store in stores}

    async def ask(kind: Kind, store: Store) -> None:
        id_ = kind.id_of(before[kind.service])
        gets = await asyncio.gather(*(store.get(id_) for _ in range(50)), return_exceptions=True)
        adding = (kind.add(store, thing) for thing in during[kind.service])
        adds = await asyncio.gather(*adding, return_exceptions=True)
        assert {type(response) for response in (*gets, *adds)} == {StoreUnavailable}, kind.service

    with victim.stalled():
        async with asyncio.timeout(6):  # this stall would not end by itself, and the machine may be slow
            await asyncio.gather(*(ask(kind, store) for kind, store in stores))
    for kind, store in stores:
        await until_stored(kind, store, kind.make())
        for thing in during[kind.service]:  # whether or not one had got through, a repeated call settles it
            await until_stored(kind, store, thing)
        for thing in (before[kind.service], *during[kind.service]):
            assert await store.get(kind.id_of(thing)) == thing


async def test_a_killed_database_loses_nothing(victim: Postgres, stores: Stores) -> None:
    """Of things added while Postgres is killed, those that were answered are there once it is back."""
    answered: dict[str, list[Thing]] = {kind.service: [] for kind in KINDS}
    enough = {kind.service: asyncio.Event() for kind in KINDS}

    async def caller(kind: Kind, store: Store) -> None:
        with suppress(StoreUnavailable):
            while True:
                answered[kind.service].append(await kind.add(store, kind.make()))
                if len(answered[kind.service]) == 200:
                    enough[kind.service].set()

    callers = [asyncio.create_task(caller(kind, store)) for kind, store in stores for _ in range(20)]
    for event in enough.values():
        await event.wait()
    victim.kill()
    await asyncio.gather(*callers)
    for kind, store in stores:
        with pytest.raises(StoreUnavailable):
            await store.get(kind.id_of(answered[kind.service][0]))
    victim.start()
    for kind, store in stores:
        await until_stored(kind, store, kind.make())
        for thing in answered[kind.service]:
            assert await store.get(kind.id_of(thing)) == thing


# The services.


@dataclass
class Service:
    """One that runs alone, as its callers see it."""

    process: Running
    folder: Path

    @property
    def name(self) -> str:
        return self.process.service

    def add(self, id_: str) -> None:
        """Places an order, submits a ticket or schedules a delivery."""
        if self.name == "order":
            Customer(self.process.channel).place(order_id=id_)
        else:
            Provider(PROVIDERS[self.name], self.process.channel).submit("diavola", id_)

    def get(self, id_: str) -> None:
        """Finds it."""
        if self.name == "order":
            Customer(self.process.channel).get(id_)
        else:
            Provider(PROVIDERS[self.name], self.process.channel).get(id_)


@contextmanager
def all_running(folder: Path, cluster: Postgres | None = None) -> Iterator[list[Service]]:
    """The three services with a folder each, where their databases are, unless those are in a Postgres."""

    def start(service: str) -> Service:
        place = folder / service
        place.mkdir()
        database = f"sqlite:///{place}/{service}.db" if cluster is None else cluster.database()
        environment = IDLE | {f"{service.upper()}_DATABASE_URL": database}
        return Service(stack.enter_context(running(service, place, **environment)), place)

    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        yield [*pool.map(start, ("order", *PROVIDERS))]


def check_unavailable(call: Callable[[str], None], id_: str) -> None:
    """A call is refused because of the store, and the refusal says when to come back."""
    with pytest.raises(grpc.RpcError) as error:
        call(id_)
    assert refusal_of(error.value).why == ("mesh", "STORE_UNAVAILABLE")
    assert retry_after(error.value) > 0


def retry_after(error: grpc.RpcError) -> float:
    """Seconds, as google.rpc.RetryInfo says them."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    raise AssertionError("no RetryInfo")


def test_a_full_disk_refuses_what_is_new_for_as_long_as_it_is_full(tmp_path: Path) -> None:
    """Nothing of that is stored, what was there is read, and once there is room, all is served."""
    with all_running(tmp_path) as services:
        for service in services:
            service.process.expected.append("StoreUnavailable")
            stored, new = str(uuid4()), str(uuid4())
            service.add(stored)
            log, pid = service.folder / f"{service.name}.db-wal", service.process.process.pid
            eventually(log.exists)
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size, most))  # no file may grow beyond
            check_unavailable(service.add, new)
            service.get(stored)
            assert refused(service.get, new).reason.endswith("_NOT_FOUND")
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
            service.add(new)
            service.get(new)


def test_services_heal_by_themselves(victim: Postgres, tmp_path: Path) -> None:
    """While its Postgres is away each says so, to health checks and callers; once that is back, it serves."""
    ids = [str(uuid4()) for _ in range(3)]
    with all_running(tmp_path, victim) as services:
        for service, id_ in zip(services, ids, strict=True):
            service.process.expected += ("StoreUnavailable", "not serving: the check fails")
            service.add(id_)
        victim.kill()
        for service, id_ in zip(services, ids, strict=True):
            check_unavailable(service.get, id_)
            eventually(lambda: not service.process.settled())  # noqa: B023 # called before the next one
        menu = Customer(services[0].process.channel).stub.ListMenuItems(pb.ListMenuItemsRequest())
        assert menu.items  # is no part of what is stored
        victim.start()
        for service, id_ in zip(services, ids, strict=True):
            eventually(service.process.settled)
            service.get(id_)


def test_services_stop_while_their_database_is_stalled(victim: Postgres, tmp_path: Path) -> None:
    """SIGTERM ends each process all the same, within its grace and some."""
    with all_running(tmp_path, victim) as services:
        for service in services:
            service.add(str(uuid4()))
        with victim.stalled():
            for service in services:
                service.process.process.terminate()
            assert [service.process.process.wait(STOP_LIMIT_SECONDS) for service in services] == [0, 0, 0]
