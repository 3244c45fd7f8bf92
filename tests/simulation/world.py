"""What all of a schedule shares: its time, its chances, and what happened in it."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
CALL_TIMEOUT_SECONDS = 2.0  # as the contract says of every command


@dataclass(frozen=True)
class Faults:
    """How likely each fault is whenever it could happen, from 0 to 1."""

    crash: float = 0.0
    """The order service's process is killed, before or after any effect."""
    store: float = 0.0
    """A transaction fails, or only seems to."""
    lose: float = 0.0
    """A request or an answer is lost."""
    slow: float = 0.0
    """A request or an answer takes seconds, so that others overtake it and its caller gives up."""
    duplicate: float = 0.0
    """A request arrives twice."""
    break_feed: float = 0.0
    """A feed breaks before its next entry."""

    @classmethod
    def drawn(cls, random: Random) -> "Faults":
        """Each fault is absent, rare or frequent: with all of them at once, none gets far."""
        return cls(
            crash=random.choice((0, 0.01, 0.05)),
            store=random.choice((0, 0, 0.02, 0.1)),
            lose=random.choice((0, 0.05, 0.3)),
            slow=random.choice((0, 0.05, 0.3)),
            duplicate=random.choice((0, 0.1, 0.5)),
            break_feed=random.choice((0, 0.05, 0.3)),
        )


class World:
    def __init__(self, random: Random, story: list[str] | None) -> None:
        self.random = random
        self.faults = Faults.drawn(random)
        self.loses_databases = self.happens(0.2)
        """Whether kitchen and delivery may lose theirs, which the order service must find out by checks."""
        self.setback = 0.0
        """Seconds that the wall clock was set back so far."""
        self.wrong: list[str] = []
        """Promises that were broken."""
        self._story = story
        self._loop = asyncio.get_running_loop()

    def clock(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time() - self.setback)

    def happens(self, likelihood: float) -> bool:
        return likelihood > 0 and self.random.random() < likelihood

    def latency(self) -> float:
        """Seconds that a message takes: 5 ms on average, unless it is slow."""
        if self.happens(self.faults.slow):
            return self.random.uniform(0, 3 * CALL_TIMEOUT_SECONDS)
        return self.random.expovariate(200)

    def tell(self, *words: object) -> None:
        if self._story is not None:  # telling takes longer than all the rest
            text = " ".join(repr(word) if isinstance(word, Exception) else str(word) for word in words)
            self._story.append(f"{self._loop.time():9.4f}  {text}")

    def set_clock_back(self, seconds: float) -> None:
        self.tell("the clock is set back by", round(seconds, 3))
        self.setback += seconds
