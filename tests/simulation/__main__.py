"""`python -m tests.simulation --schedules 10000 --seed 1`, or `--replay SEED` for what happened in one schedule."""

import argparse
import sys
import time

from tests.simulation.simulator import Databases, databases, failures, run


def main() -> int:
    """Exits with 1 where a schedule broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="Looks for faults of fulfilment.")
    parser.add_argument("--schedules", type=int, default=10_000, help="how many (10000)")
    parser.add_argument("--seed", type=int, default=1, help="that of the first schedule; the next has the next (1)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="tell what happens in the schedule of this seed")
    parser.add_argument("--store", choices=("real", "model"), default="model", help="the real one takes longer (model)")
    parser.add_argument("--planted", action="store_true", help="with a bug: a feed's token is stored before the effect")
    arguments = parser.parse_args()
    with databases(arguments.store, planted=arguments.planted) as database:
        return _replay(arguments.replay, database) if arguments.replay is not None else _search(arguments, database)


def _replay(seed: int, database: Databases) -> int:
    result = run(seed, database, tells=True)
    print(*result.story, *result.wrong, sep="\n")
    return bool(result.wrong)


def _search(arguments: argparse.Namespace, database: Databases) -> int:
    begin, failed = time.monotonic(), 0
    for failure in failures(range(arguments.seed, arguments.seed + arguments.schedules), database):
        failed += 1
        print(f"seed {failure.seed}: {'; '.join(failure.wrong)}", flush=True)
    seconds = time.monotonic() - begin
    print(f"{arguments.schedules} schedules from seed {arguments.seed} in {seconds:.1f} s; {failed} broke a promise")
    if failed:
        print("--replay SEED tells what happened")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
