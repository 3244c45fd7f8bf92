"""`python -m tests.chaos --seed 1 --orders 2000 --kills 100`: a real shop, killed all the while; see `run` for how."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos.isolation import measure, table
from tests.chaos.run import run
from tests.postgres import MISSING, PROGRAMS, Postgres, postgres
from tests.shop import Shop


def main() -> int:
    """Exits with 1 where a promise was broken; the shop's databases and logs are kept then."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Kills the shop, and counts its orders.")
    parser.add_argument("--seed", type=int, default=1, help="of what customers want and what is killed when (1)")
    parser.add_argument("--orders", type=int, default=2000, help="how many are placed (2000)")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs, with a SIGSTOP of 5 s for every five (100)")
    parser.add_argument(
        "--calls", type=int, default=200, help="of each method, to measure fault isolation; 0: not (200)"
    )
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="which database (sqlite)")
    parser.add_argument("--replicas", type=int, default=1, help="of each service, where they share a Postgres (1)")
    arguments = parser.parse_args()
    if arguments.replicas > 1 and arguments.store == "sqlite":
        parser.error("--replicas needs --store postgres: SQLite is one process's own")
    if arguments.store == "postgres" and PROGRAMS is None:
        parser.error(MISSING)
    print(
        f"seed {arguments.seed}: {arguments.orders} orders, {arguments.kills} kills,"
        f" {arguments.replicas} of each service on {arguments.store}",
        flush=True,
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        with postgres(fsync=True) if arguments.store == "postgres" else nullcontext() as cluster:
            wrong = asyncio.run(_chaos(folder, cluster, arguments))
    except BaseException:
        print(f"seed {arguments.seed} was broken off; databases and logs are in {folder}", flush=True)
        raise
    if wrong:
        print(*wrong, sep="\n")
        print(f"seed {arguments.seed} broke {len(wrong)} promises; databases and logs are in {folder}")
    else:
        shutil.rmtree(folder)
        print(f"seed {arguments.seed}: every order exists once, has ended, and agrees with its ticket and delivery")
    return bool(wrong)


async def _chaos(folder: Path, cluster: Postgres | None, arguments: argparse.Namespace) -> list[str]:
    def shop(name: str) -> Shop:
        (folder / name).mkdir()
        # News alone must do: checks would hide that some were lost.
        return Shop(folder / name, "processes", cluster, arguments.replicas, ORDER_CHECK_AFTER="3600")

    if arguments.calls:
        print("kitchen and delivery away:", flush=True)
        print(table(await measure(shop("isolation"), arguments.calls)), flush=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress:
        bar = progress.add_task("orders", total=arguments.orders)
        result = await run(
            shop("chaos"),
            arguments.seed,
            arguments.orders,
            arguments.kills,
            cluster,
            progress=lambda settled: progress.update(bar, completed=settled),
        )
    for name, figure in result.figures.items():
        print(f"{name}: {figure}")
    return result.wrong


if __name__ == "__main__":
    sys.exit(main())
