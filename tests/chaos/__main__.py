"""`python -m tests.chaos --seed 1 --orders 2000 --kills 100`: a real shop, killed all the while; see `run` for how."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos.isolation import measure, table
from tests.chaos.run import run
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
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}: {arguments.orders} orders, {arguments.kills} kills", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    wrong = asyncio.run(_chaos(folder, arguments))
    if wrong:
        print(*wrong, sep="\n")
        print(f"seed {arguments.seed} broke {len(wrong)} promises; databases and logs are in {folder}")
    else:
        shutil.rmtree(folder)
        print(f"seed {arguments.seed}: every order exists once, has ended, and agrees with its ticket and delivery")
    return bool(wrong)


async def _chaos(folder: Path, arguments: argparse.Namespace) -> list[str]:
    if arguments.calls:
        print("kitchen and delivery away:", flush=True)
        print(table(await measure(_shop(folder / "isolation"), arguments.calls)), flush=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, disable=not sys.stdout.isatty(), transient=True) as progress:
        bar = progress.add_task("orders", total=arguments.orders)
        result = await run(
            _shop(folder / "chaos"),
            arguments.seed,
            arguments.orders,
            arguments.kills,
            progress=lambda settled: progress.update(bar, completed=settled),
        )
    for name, figure in result.figures.items():
        print(f"{name}: {figure}")
    return result.wrong


def _shop(folder: Path) -> Shop:
    folder.mkdir()
    return Shop(folder, "processes")


if __name__ == "__main__":
    sys.exit(main())
