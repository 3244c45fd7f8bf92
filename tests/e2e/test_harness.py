"""What starts services for tests ends all that it has started, and hides no fault of theirs."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.contract.launch
from tests.contract.launch import COMMANDS, connect, running
from tests.logs import faults
from tests.postgres import MISSING, PROGRAMS, Postgres, postgres
from tests.shop import Shop

ERROR = json.dumps({"level": "error", "message": "the oven is cold"})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Each process that the test has started."""
    found: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    yield found
    for process in found:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (ERROR, True),
        (json.dumps({"level": "critical", "message": "all ovens are cold"}), True),
        (json.dumps({"level": "warning", "message": "cold", "exception": [{"exc_type": "Cold"}]}), True),
        ("Traceback (most recent call last):", True),
        ("Exception ignored in: <generator object>", True),
        ("error: cannot listen on 'nonsense'", True),
        ("kitchen.py:7: RuntimeWarning: coroutine 'bake' was never awaited", True),
        (json.dumps({"level": "info", "message": "no error, no exception"}), False),
        (json.dumps({"level": "warning", "message": "the oven cools"}), False),
        ("E0000 00:00:17.5 1 ssl_transport.cc:1] Handshake failed with error SSL_ERROR_SSL", False),
        ("The shop is open on localhost:8080.", False),
    ],
)
def test_a_fault_is_told_from_what_is_none(line: str, fault: bool, tmp_path: Path) -> None:
    """Errors and exceptions are faults, logged or printed by Python; warnings and gRPC's own lines are none."""
    log = tmp_path / "kitchen.log"
    log.write_text(f"before\n{line}\n")
    assert faults(log) == ([line] if fault else [])
    assert faults(log, [line]) == faults(log, begin=log.stat().st_size) == []


async def test_a_shop_that_logs_a_fault_fails_its_test(tmp_path: Path) -> None:
    """An error in a service's log, or another end than by a stop, is told at the shop's end; others are not."""
    with pytest.raises(AssertionError, match="the oven is cold"):
        async with Shop(tmp_path, "processes") as shop:
            log_into(tmp_path / "kitchen.log")
    with pytest.raises(ZeroDivisionError):  # and it does not hide what the test itself came to
        async with shop:
            raise ZeroDivisionError
    shop.expected.append("the oven is cold")
    with pytest.raises(AssertionError, match="delivery ended with -6"):
        async with shop:
            await asyncio.to_thread(abort, shop.processes["delivery"])


@pytest.mark.parametrize("fails", ["connects", "serves"])
def test_a_service_that_does_not_come_up_is_ended(
    fails: str, tmp_path: Path, started: "list[subprocess.Popen[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part of its start fails, nothing is left of a service that a test has started."""

    def cannot_connect(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(tests.contract.launch, "connect", cannot_connect if fails == "connects" else connect)
    monkeypatch.setattr(tests.contract.launch, "_LIMIT_SECONDS", 0.5)
    monkeypatch.setitem(COMMANDS, "kitchen", [sys.executable, "-c", "import time; time.sleep(60)"])
    with pytest.raises((ZeroDivisionError, AssertionError)), running("kitchen", tmp_path):
        raise NotImplementedError
    assert bool(started) is (fails == "serves")
    assert [process for process in started if process.poll() is None] == []


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda process: log_into(process.log), "the oven is cold"),
        (lambda process: abort(process.process), "ended with -6"),
    ],
    ids=["logs", "ends"],
)
def test_a_service_that_does_not_end_well_fails_its_test(
    act: Callable[[Any], object], complaint: str, tmp_path: Path
) -> None:
    """A fault in a service's log, or another end than by a stop or a kill, fails the test unless it expects it."""
    with pytest.raises(AssertionError, match=complaint), running("kitchen", tmp_path) as process:
        act(process)
    with running("kitchen", tmp_path) as process:  # what an earlier one has logged is not its own
        log_into(process.log)
        process.expected.append("the oven is cold")


@pytest.mark.skipif(PROGRAMS is None, reason=MISSING)
def test_a_postgres_that_does_not_come_up_is_ended(
    started: "list[subprocess.Popen[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that takes no connections is ended where its test gives up on it."""
    takes_connections = Postgres._takes_connections

    def give_up(cluster: Postgres) -> bool:
        if takes_connections(cluster):  # before, it may yet end by itself
            raise ZeroDivisionError
        return False

    monkeypatch.setattr(Postgres, "_takes_connections", give_up)
    with pytest.raises(ZeroDivisionError), postgres():
        raise NotImplementedError
    *_, server = started
    assert server.poll() is not None


def abort(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGABRT)
    process.wait()


def log_into(log: Path) -> None:
    with log.open("a") as file:
        print(ERROR, file=file)
