"""The whole shop in one process: `python -m all_in_one`.

The same three applications, wired by the same settings. Where ORDER_KITCHEN_TARGET or ORDER_DELIVERY_TARGET is set,
that service runs elsewhere, and this process does without it.
"""

import sys
from contextlib import AsyncExitStack

from delivery.app import delivery_app
from delivery.config import load_settings as load_delivery_settings
from grpcmesh import Channel, Workload, connect, logs, run, stop_requested
from kitchen.app import kitchen_app
from kitchen.config import load_settings as load_kitchen_settings
from order.app import order_app
from order.clients import DELIVERY, KITCHEN
from order.config import Settings as OrderSettings
from order.config import load_settings as load_order_settings


async def main() -> None:
    settings = load_order_settings()
    logs.configure(settings.log_level)
    async with AsyncExitStack() as stack:
        order = await _workload(stack, "order")
        kitchen = await _kitchen(stack, settings, order)
        delivery = await _delivery(stack, settings, order)
        await stack.enter_async_context(order_app(settings, order, kitchen, delivery))
        print(_welcome(settings.listen), file=sys.stderr, flush=True)
        await stop_requested()


async def _workload(stack: AsyncExitStack, name: str) -> Workload:
    return await stack.enter_async_context(Workload.from_environment(name))


async def _kitchen(stack: AsyncExitStack, settings: OrderSettings, order: Workload) -> Channel:
    if settings.kitchen_target is not None:
        return await stack.enter_async_context(connect(settings.kitchen_target, KITCHEN, order))
    inner = load_kitchen_settings().model_copy(update={"listen": None})
    kitchen = await _workload(stack, "kitchen")
    return (await stack.enter_async_context(kitchen_app(inner, kitchen))).channel(order)


async def _delivery(stack: AsyncExitStack, settings: OrderSettings, order: Workload) -> Channel:
    if settings.delivery_target is not None:
        return await stack.enter_async_context(connect(settings.delivery_target, DELIVERY, order))
    inner = load_delivery_settings().model_copy(update={"listen": None})
    delivery = await _workload(stack, "delivery")
    return (await stack.enter_async_context(delivery_app(inner, delivery))).channel(order)


def _welcome(listen: str) -> str:
    target = listen.replace("127.0.0.1", "localhost").replace("0.0.0.0", "localhost")  # noqa: S104 # compared, not bound
    return f"""
The shop is open on {target}. Three things to try, in another terminal:

  .venv/bin/pizza --target {target} order margherita:2 belgian-waffle --to "1 Main St, Springfield" --watch
  .venv/bin/pizza --target {target} list
  grpcurl -plaintext {target} pizza.order.v1.OrderService/ListMenuItems
"""


if __name__ == "__main__":
    run(main)
