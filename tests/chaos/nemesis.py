"""Kills, stalls and starts again what the shop runs on, at moments that follow from a seed."""

import asyncio
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from tests.chaos.ledger import Ledger
from tests.postgres import Postgres
from tests.shop import Shop

POSTGRES = "postgres"
STALL_SECONDS = 5.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Strike:
    moment: int
    """How many orders are settled by then: progress, not time, so that a seed means the same on every machine."""
    victim: str
    kills: bool
    """SIGKILL; else SIGSTOP."""
    seconds: float
    """How long the victim stays away."""


def plan(seed: int, victims: Iterable[str], orders: int, kills: int) -> list[Strike]:
    """So many SIGKILLs, and a SIGSTOP for every five of them."""
    random, victims = Random(f"{seed} nemesis"), sorted(victims)

    def strike(kill: bool) -> Strike:
        seconds = random.choice((0.0, random.uniform(0, 1), random.uniform(0, 3))) if kill else STALL_SECONDS
        return Strike(random.randrange(orders), random.choice(victims), kill, seconds)

    strikes = [strike(kill=True) for _ in range(kills)] + [strike(kill=False) for _ in range(kills // 5)]
    return sorted(strikes, key=lambda strike: strike.moment)


class Nemesis:
    def __init__(self, shop: Shop, postgres: Postgres | None, ledger: Ledger, strikes: list[Strike]) -> None:
        self._shop = shop
        self._postgres = postgres
        self._ledger = ledger
        self._strikes = strikes
        self.kills: Counter[str] = Counter()
        self.stalls: Counter[str] = Counter()
        """How many there were so far, by victim."""
        self.wrong: list[str] = []
        """Who ended without being killed, and how."""
        self.in_vain = 0
        """How often a service could not be started, as its database was away."""

    async def run(self) -> None:
        """Strikes until all is done, and leaves everything running."""
        supervisor = asyncio.create_task(self._supervise())
        try:
            async with asyncio.TaskGroup() as group:
                for victim in {strike.victim for strike in self._strikes}:
                    group.create_task(self._torment(victim))
            await self._shop.serving()
        finally:
            supervisor.cancel()

    async def _torment(self, victim: str) -> None:
        """One victim's strikes, each at its moment or once the one before is over. Others have theirs meanwhile."""
        for strike in self._strikes:
            if strike.victim == victim:
                await self._ledger.reached(strike.moment)
                await (self._kill if strike.kills else self._stall)(victim, strike.seconds)

    async def _kill(self, victim: str, seconds: float) -> None:
        """Whoever strikes next may find it starting."""
        self.kills[victim] += 1
        if victim == POSTGRES:
            assert self._postgres is not None
            self._postgres.kill()
            await asyncio.sleep(seconds)  # so long it stays dead
            await asyncio.to_thread(self._postgres.start)
        else:
            self._shop.kill(victim)
            await asyncio.sleep(seconds)  # also drawn from the seed
            self._shop.launch(victim)

    async def _stall(self, victim: str, seconds: float) -> None:
        self.stalls[victim] += 1
        if victim == POSTGRES:
            assert self._postgres is not None
            with self._postgres.stalled():
                await asyncio.sleep(seconds)  # so long it is stopped
        else:
            process = self._shop.processes[victim]
            process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)  # also drawn from the seed
            finally:
                process.send_signal(signal.SIGCONT)

    async def _supervise(self) -> None:
        """Starts again whatever ends by itself, as an orchestrator does; only the database's absence is a reason to."""
        while True:
            for name, process in list(self._shop.processes.items()):
                if process.poll() is not None:
                    *_, last = (self._shop.folder / f"{name}.log").read_text().splitlines() or [""]
                    if self._postgres is not None and "cannot use the database" in last:
                        self.in_vain += 1
                    else:
                        self.wrong.append(f"{name} ended by itself with {process.returncode}: {last}")
                    self._shop.launch(name)
            await asyncio.sleep(_LOOK_SECONDS)  # that a process has ended is found by looking
