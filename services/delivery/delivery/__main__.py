"""Delivery as a process of its own: `python -m delivery`."""

from grpcmesh import Workload, logs, run, stop_requested

from delivery.app import delivery_app
from delivery.config import load_settings


async def main() -> None:
    settings = load_settings()
    logs.configure(settings.log_level)
    async with Workload.from_environment("delivery") as workload, delivery_app(settings, workload):
        await stop_requested()


if __name__ == "__main__":
    run(main)
