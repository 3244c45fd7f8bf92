"""The order service as a process of its own: `python -m order`."""

from grpcmesh import StartError, Workload, connect, logs, run, stop_requested

from order.app import order_app
from order.clients import DELIVERY, KITCHEN
from order.config import load_settings


async def main() -> None:
    settings = load_settings()
    logs.configure(settings.log_level)
    if settings.kitchen_target is None or settings.delivery_target is None:
        raise StartError("ORDER_KITCHEN_TARGET and ORDER_DELIVERY_TARGET must say where the others are")
    async with (
        Workload.from_environment("order") as workload,
        connect(settings.kitchen_target, KITCHEN, workload) as kitchen,
        connect(settings.delivery_target, DELIVERY, workload) as delivery,
        order_app(settings, workload, kitchen, delivery),
    ):
        await stop_requested()


if __name__ == "__main__":
    run(main)
