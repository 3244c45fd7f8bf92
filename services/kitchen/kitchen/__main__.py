"""The kitchen as a process of its own: `python -m kitchen`."""

from grpcmesh import Workload, logs, run, stop_requested

from kitchen.app import kitchen_app
from kitchen.config import load_settings


async def main() -> None:
    settings = load_settings()
    logs.configure(settings.log_level)
    async with Workload.from_environment("kitchen") as workload, kitchen_app(settings, workload):
        await stop_requested()


if __name__ == "__main__":
    run(main)
