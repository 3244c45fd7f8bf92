"""One run: customers and a nemesis at the same shop, and what came of it."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.checker import broken, live_orders, read_books
from tests.chaos.customers import order_all
from tests.chaos.ledger import Ledger
from tests.chaos.nemesis import POSTGRES, Nemesis, plan
from tests.postgres import Postgres
from tests.shop import Shop

_PATIENCE_SECONDS = 90.0  # in which some order must be settled
_AFTERMATH_SECONDS = 60.0  # in which some order must end, once nothing is killed any more
_LOOK_SECONDS = 0.2
_AWAY = ("StoreUnavailable", "StoreOverloaded", "not serving: the check fails", "cannot use the database")
"""What services may log as a fault while their database is away, or once they themselves were stopped for a while."""


@dataclass(frozen=True)
class Result:
    wrong: list[str]
    """The promises that were broken."""
    figures: dict[str, str]
    ledger: Ledger


async def run(
    shop: Shop,
    seed: int,
    orders: int,
    kills: int,
    postgres: Postgres | None = None,
    progress: Callable[[int], object] = lambda settled: None,
) -> Result:
    """Starts the shop, torments it, stops it and reads its databases.

    `postgres` is where the shop stores, and a victim too; `progress` hears how many orders are settled.
    """
    begin, ledger = time.monotonic(), Ledger()
    shop.expected += _AWAY
    async with shop:
        victims = [*shop.processes, *([POSTGRES] if postgres else [])]
        nemesis = Nemesis(shop, postgres, ledger, plan(seed, victims, orders, kills))
        ledger.last_settled = time.monotonic()
        ordering = asyncio.create_task(order_all(seed, orders, shop.target, ledger))
        striking = asyncio.create_task(nemesis.run())
        try:
            await _until_struck(striking, ledger, progress)
            calm = time.monotonic()
            await _until_ended(shop, ordering)
            ending = time.monotonic() - calm
        finally:
            for task in (ordering, striking):
                task.cancel()
            await asyncio.wait([ordering, striking])
    await asyncio.gather(striking, ordering, return_exceptions=True)
    if not ordering.cancelled() and (error := ordering.exception()) is not None:
        raise error
    books = read_books(shop.databases)
    seconds = time.monotonic() - begin
    acknowledged = sum(entry.acknowledged for entry in ledger.entries.values())
    again = {table: _log_lines(shop.folder, f"{table} again") for table in ("ticket submitted", "delivery scheduled")}
    figures = {
        "orders": f"{acknowledged} acknowledged, {ledger.settled - acknowledged} given up by their customers",
        "ended": ", ".join(
            f"{sum(order.state == state for order in books.orders)} {state}"
            for state in sorted({order.state for order in books.orders})
        ),
        "struck": f"SIGKILL {_total(nemesis.kills)}; SIGSTOP of 5 s {_total(nemesis.stalls)}",
        "redeliveries absorbed": f"{ledger.placed_again} PlaceOrder, {again['ticket submitted']} SubmitTicket, "
        f"{again['delivery scheduled']} ScheduleDelivery: calls that repeated a key, and were answered what was stored",
        "worst gap in accepting": f"{ledger.worst_gap:.1f} s between acknowledged PlaceOrders, while somebody tried",
        "time": f"{seconds:.0f} s, of which {ending:.1f} s to end what was under way after the last strike",
    }
    if postgres is not None:
        figures["starts in vain"] = f"{nemesis.in_vain}, the database being away"
    return Result([*broken(ledger, books), *nemesis.wrong], figures, ledger)


async def _until_struck(striking: "asyncio.Task[None]", ledger: Ledger, progress: Callable[[int], object]) -> None:
    """Raises TimeoutError where the shop takes no orders any more."""
    while not striking.done():
        progress(ledger.settled)
        if time.monotonic() - ledger.last_settled > _PATIENCE_SECONDS:
            raise TimeoutError(f"no order was taken for {_PATIENCE_SECONDS:.0f} s, after {ledger.settled}")
        await asyncio.wait([striking], timeout=_LOOK_SECONDS)
    await striking


async def _until_ended(shop: Shop, ordering: "asyncio.Task[None]") -> None:
    """Waits until all orders have ended and customers have seen all that they wait for, or nothing moves any more."""
    fewest, since = math.inf, time.monotonic()
    while (live := await asyncio.to_thread(live_orders, shop.databases["order"])) or not ordering.done():
        if live < fewest:
            fewest, since = live, time.monotonic()
        if time.monotonic() - since > _AFTERMATH_SECONDS:
            return
        await asyncio.sleep(_LOOK_SECONDS)  # the orders are in another process's database


def _log_lines(folder: Path, words: str) -> int:
    return sum(log.read_text().count(words) for log in folder.glob("*.log"))


def _total(strikes: Mapping[str, int]) -> str:
    return f"{sum(strikes.values())} ({', '.join(f'{victim} {times}' for victim, times in sorted(strikes.items()))})"
