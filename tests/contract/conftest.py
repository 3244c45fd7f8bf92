"""The services under test, each alone and started once; tests use ids of their own, so that none disturbs another."""

from collections.abc import Iterator

import pytest

from tests.contract import launch
from tests.contract.fakes import FakeDelivery, FakeKitchen
from tests.contract.launch import DATA, Running, connect, running
from tests.contract.providers import DELIVERY, KITCHEN, PROVIDERS, Provider
from tests.postgres import DATABASES

Temporary = pytest.TempPathFactory


@pytest.fixture(scope="session", autouse=True, params=DATABASES)
def database(request: pytest.FixtureRequest) -> Iterator[None]:
    """Has services store in each kind of database in turn."""
    launch.DATABASES.postgres = None if request.param == "sqlite" else request.getfixturevalue("cluster")
    yield
    launch.DATABASES.postgres = None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What touches no store is tested over one alone."""
    left_out = [item for item in items if not _touches_its_store(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _touches_its_store(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return True
    if item.callspec.params.get("database") != "postgresql":
        return True
    fake = str(item.callspec.params.get("provider", "")).startswith("fake")
    return not fake and item.get_closest_marker("no_store") is None


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Provider:
    """Each provider, and each fake of one."""
    found: Provider = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: Temporary, database: None) -> Iterator[Provider]:
    """The kitchen; its recipes say where each ticket stays."""
    ways = {
        "QUEUED": lambda kitchen: kitchen.new("diavola"),
        "COOKING": lambda kitchen: kitchen.new("marinara"),
        "READY": lambda kitchen: kitchen.new("margherita"),
        "CANCELLED": Provider.cancelled,
    }
    with running("kitchen", tmp_path_factory.mktemp("kitchen")) as process:
        provider = Provider(KITCHEN, process.channel, ways)
        provider.new("diavola")  # holds the only station where they are made
        yield provider


@pytest.fixture(scope="session")
def busy_delivery(tmp_path_factory: Temporary, database: None) -> Iterator[Provider]:
    """Delivery, with its only courier on the road for ever."""
    fleet = f"{DATA}/busy_fleet.toml"
    with running("delivery", tmp_path_factory.mktemp("busy_delivery"), DELIVERY_FLEET=fleet) as process:
        first = Provider(DELIVERY, process.channel).new()
        ways = {"SCHEDULED": Provider.new, "IN_TRANSIT": lambda _: first, "CANCELLED": Provider.cancelled}
        yield Provider(DELIVERY, process.channel, ways)


@pytest.fixture(scope="session")
def quick_delivery(tmp_path_factory: Temporary, database: None) -> Iterator[Provider]:
    """Delivery, with a courier for every parcel, who is there at once."""
    with running("delivery", tmp_path_factory.mktemp("quick_delivery")) as process:
        yield Provider(DELIVERY, process.channel, {"DELIVERED": Provider.new})


@pytest.fixture(scope="session")
def fake_kitchen() -> Iterator[FakeKitchen]:
    fake = FakeKitchen()
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def fake_delivery() -> Iterator[FakeDelivery]:
    fake = FakeDelivery()
    yield fake
    fake.close()


@pytest.fixture(scope="session")
def fake_kitchen_provider(fake_kitchen: FakeKitchen) -> Iterator[Provider]:
    yield from _provider(fake_kitchen)


@pytest.fixture(scope="session")
def fake_delivery_provider(fake_delivery: FakeDelivery) -> Iterator[Provider]:
    yield from _provider(fake_delivery)


def _provider(fake: FakeKitchen | FakeDelivery) -> Iterator[Provider]:
    """A fake, as one that is held against the promises of its kind."""
    first, second, third = fake.kind.life
    ways = {
        first: Provider.new,
        second: lambda provider: fake.go(provider.new(), second),
        third: lambda provider: fake.go(provider.new(), second, third),
        "CANCELLED": Provider.cancelled,
    }
    with connect(fake.address) as channel:
        yield Provider(fake.kind, channel, ways)


@pytest.fixture(scope="session")
def held_order(tmp_path_factory: Temporary, database: None) -> Iterator[Running]:
    """The order service with nobody around it; its orders wait for ever before they go to the kitchen."""
    with running("order", tmp_path_factory.mktemp("held_order"), ORDER_HOLD="1e6") as process:
        yield process


@pytest.fixture(scope="session")
def targets(fake_kitchen: FakeKitchen, fake_delivery: FakeDelivery) -> dict[str, str]:
    """What tells the order service of the fakes."""
    return {"ORDER_KITCHEN_TARGET": fake_kitchen.address, "ORDER_DELIVERY_TARGET": fake_delivery.address}


@pytest.fixture(scope="session")
def order(tmp_path_factory: Temporary, database: None, targets: dict[str, str]) -> Iterator[Running]:
    """The order service between a fake kitchen and a fake delivery."""
    with running("order", tmp_path_factory.mktemp("order"), **targets) as process:
        yield process
