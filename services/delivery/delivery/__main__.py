"""Delivery as a process of its own: `python -m delivery`."""

from grpcmesh import logs, run, stop_requested

from delivery.app import delivery_app
from delivery.config import load_settings


async def main() -> None:
    settings = load_settings()
    logs.configure(settings.log_level)
    async with delivery_app(settings):
        await stop_requested()


if __name__ == "__main__":
    run(main)
