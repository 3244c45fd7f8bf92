"""What a customer notices of kitchen and delivery being away: measured, side by side."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from statistics import quantiles
from uuid import uuid4

from pizza.order.v1 import order_service_pb2 as pb

from tests.chaos.checker import live_orders
from tests.shop import Customer, Shop, customer

_WARM_UP = 20  # calls
_DRAIN_SECONDS = 90.0  # for what was placed meanwhile to be fulfilled
_OTHERS = ("kitchen", "delivery")

Latencies = dict[str, list[float]]
"""Seconds of each call, by method."""


async def measure(shop: Shop, calls: int) -> dict[str, Latencies]:
    """Calls each method so often while all is well, while kitchen and delivery are dead, and while they are stopped.

    Raises AioRpcError where a call fails, TimeoutError where an order is not fulfilled once they are back.
    """
    async with shop, customer(shop) as ada:
        await _series(ada, _WARM_UP)
        phases = {"healthy": await _series(ada, calls)}
        others = [name for name in shop.processes if name.startswith(_OTHERS)]
        shop.kill(*others)
        phases["dead"] = await _series(ada, calls)
        await shop.start(*others)
        await _drained(shop)
        stopped = [shop.processes[name] for name in others]
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        try:
            phases["stopped"] = await _series(ada, calls)
        finally:
            for process in stopped:
                process.send_signal(signal.SIGCONT)
        await _drained(shop)
    return phases


async def _series(ada: Customer, calls: int) -> Latencies:
    """Calls one after another; orders that were placed go on meanwhile, where they can."""
    seconds: Latencies = {"PlaceOrder": [], "GetOrder": [], "ListOrders": []}
    for _ in range(calls):
        order_id = str(uuid4())
        mine = pb.ListOrdersRequest(customer_id="ada", page_size=10)
        steps: dict[str, Callable[[], Awaitable[object]]] = {
            "PlaceOrder": partial(ada.place, order_id),
            "GetOrder": partial(ada.stub.GetOrder, pb.GetOrderRequest(order_id=order_id), timeout=5),
            "ListOrders": partial(ada.stub.ListOrders, mine, timeout=5),
        }
        for method, call in steps.items():
            begin = time.perf_counter()
            await call()
            seconds[method].append(time.perf_counter() - begin)
    return seconds


async def _drained(shop: Shop) -> None:
    async with asyncio.timeout(_DRAIN_SECONDS):
        while await asyncio.to_thread(live_orders, shop.databases["order"]):  # noqa: ASYNC110 # in other processes
            await asyncio.sleep(0.2)


def table(phases: dict[str, Latencies]) -> str:
    """p50 and p99 in milliseconds, a line for each method.

    On few cores, healthy may be the slowest: what was placed is made and carried meanwhile.
    """
    lines = [f"{'p50 / p99 in ms':<16}" + "".join(f"{phase:>18}" for phase in phases)]
    for method in next(iter(phases.values())):
        cells = (quantiles(phase[method], n=100, method="inclusive") for phase in phases.values())
        lines.append(f"{method:<16}" + "".join(f"{f'{cut[49] * 1e3:.1f} / {cut[98] * 1e3:.1f}':>18}" for cut in cells))
    return "\n".join(lines)
