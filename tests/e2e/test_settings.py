"""Each setting does what it says: the applications on a clock that stands still, and their processes."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.apps import NOW, Apps, Clock, in_folder, one_of_each, open_apps, until
from tests.contract.launch import running
from tests.contract.providers import KINDS, Provider
from tests.e2e.test_shop import rows
from tests.shop import Shop, customer
from tests.stores.kinds import PROVIDERS, WORK
from tests.stores.kinds import Provider as Kind

DRAIN_SECONDS = 1.2  # longer than the stop of a process with nothing to do would take
MICROSECONDS = 1_000_000
EARLY = int((NOW + timedelta(hours=1)).timestamp()) * MICROSECONDS


async def place(shop: Apps) -> str:
    order_id = str(uuid4())
    await shop.customer.place(order_id)
    return order_id


@pytest.mark.parametrize(
    ("service", "setting", "seconds", "query"),
    [
        ("order", "hold", 90, "select due - create_time from orders where state = 'PLACED' and attempts = 0"),
        ("order", "check_after", 45, "select due - update_time from orders where step = 'CHECK_TICKET'"),
        ("kitchen", "time_scale", 15, "select done_at - since from portions where done_at is not null"),
        ("delivery", "time_scale", 15, "select arrives_at - update_time from deliveries where state = 'IN_TRANSIT'"),
    ],
)
async def test_what_takes_time_takes_as_long_as_is_set(
    service: str, setting: str, seconds: int, query: str, tmp_path: Path
) -> None:
    """How long an order is held, when it is asked about, and what a minute of cooking or of a trip takes."""
    data = one_of_each(tmp_path)
    data["kitchen"]["time_scale"] = 1e-9 if service == "delivery" else 1
    data[service][setting] = seconds / 60 if setting == "time_scale" else seconds
    async with open_apps(in_folder(tmp_path), Clock(), **data) as shop:
        await place(shop)
        await until(lambda: shop.rows(service, query) != [], f"{service}'s {setting}")
        assert shop.rows(service, query) == [(seconds * MICROSECONDS,)]


@pytest.mark.parametrize("kind", PROVIDERS, ids=lambda kind: kind.service)
@pytest.mark.parametrize("retention", [timedelta(hours=1), timedelta(days=2)], ids=str)
async def test_a_feed_is_kept_for_as_long_as_is_set(kind: Kind, retention: timedelta, tmp_path: Path) -> None:
    """A day later each thing's last change is left where an hour is set, and every change where two days are."""
    databases, whole = in_folder(tmp_path), [state for state in kind.states for _ in range(3)]
    async with kind.open(databases[kind.service], "") as store:
        for moment in (NOW, NOW + WORK, NOW + 2 * WORK):
            await kind.add(store, kind.make())
            await kind.work(store, moment)
        await kind.work(store, NOW + 3 * WORK)
    data = one_of_each(tmp_path)
    data[kind.service]["feed_retention"] = retention.total_seconds()
    async with open_apps(databases, Clock(NOW + timedelta(days=1)), **data) as shop:
        await place(shop)
        await until(lambda: shop.rows("kitchen", "select * from tickets where state = 'COOKING'") != [], "a ticket")
        # Whatever a kitchen or a delivery that has just started has to compact, it has by now.
        query = f"select state from {kind.noun}_changes where update_time < {EARLY}"  # noqa: S608 # no secret, no input
        left = whole if retention > timedelta(days=1) else whole[-3:]
        await until(lambda: sorted(state for (state,) in shop.rows(kind.service, query)) == sorted(left), str(left))


# Their processes.


async def test_processes_that_take_orders_go_by_their_settings(tmp_path: Path) -> None:
    """A step that is postponed is logged at INFO, not at ERROR; and a process's stop lasts as long as its drain."""

    async def levels(topology: str, program: str, level: str) -> set[str]:
        folder = tmp_path / f"{program} {level}"
        folder.mkdir()
        shop = Shop(folder, topology, ORDER_LOG_LEVEL=level, MESH_DRAIN=f"{DRAIN_SECONDS}")
        try:
            await shop.start(program)  # without a kitchen
            async with customer(shop) as ada:
                await ada.place(str(uuid4()))
            tried_again = "select * from orders where attempts > 1"
            await until(lambda: rows(shop, "order", tried_again) != [], "a second attempt")
        finally:
            start = time.monotonic()
            await asyncio.to_thread(shop.stop)
        assert time.monotonic() - start >= DRAIN_SECONDS, program
        return {line["level"] for line in shop.log(program)}

    assert [
        *await asyncio.gather(
            levels("processes", "order", "ERROR"),
            levels("kitchen", "all_in_one", "INFO"),
            levels("kitchen", "all_in_one", "ERROR"),
        )
    ] == [set(), {"info"}, set()]


@pytest.mark.parametrize("service", KINDS)
def test_a_process_that_is_asked_goes_by_its_settings(service: str, tmp_path: Path) -> None:
    """A command that comes again is logged at INFO, not at ERROR; and the process's stop lasts as long as its drain."""
    environment = {f"{service.upper()}_LOG_LEVEL": "ERROR", "MESH_DRAIN": f"{DRAIN_SECONDS}"}
    with running(service, tmp_path, **environment) as process:
        for _ in range(2):
            Provider(KINDS[service], process.channel).submit("margherita", "00000000-0000-4000-8000-000000000000")
        start = time.monotonic()
        assert process.terminate() == 0
    assert time.monotonic() - start >= DRAIN_SECONDS
    assert (tmp_path / f"{service}.log").read_text() == ""
