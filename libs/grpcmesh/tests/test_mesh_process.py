"""A service's process: how it fails to start, how it is told to stop, what it logs."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import dedent, indent

import pytest

_LIMIT_SECONDS = 20.0
_PROGRAM = """
import asyncio
import logging
import structlog
from grpcmesh import StartError, logs, run, stop_requested

async def main():
{main}

run(main)
"""

signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@contextmanager
def process(main: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs this body of its `main`."""
    code = _PROGRAM.format(main=indent(dedent(main), "    "))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def test_a_service_that_cannot_start_says_so_in_one_line() -> None:
    """A StartError is one line for the operator, and exit status 1."""
    with process('raise StartError("the store is away")') as started:
        assert started.communicate(timeout=_LIMIT_SECONDS) == ("", "error: the store is away\n")
    assert started.returncode == 1


@signals
def test_a_signal_is_a_request_to_stop(number: signal.Signals) -> None:
    """On SIGTERM and SIGINT a service ends what it does by itself, with exit status 0."""
    main = """
        stopping = asyncio.ensure_future(stop_requested())
        await asyncio.sleep(0)
        print("ready", flush=True)
        await stopping
        print("stopped")
    """
    with process(main) as started:
        assert said(started) == "ready"
        started.send_signal(number)
        assert started.communicate(timeout=_LIMIT_SECONDS) == ("stopped\n", "")
    assert started.returncode == 0


@signals
def test_a_second_signal_is_an_order(number: signal.Signals) -> None:
    """A service that hangs in its stop is ended by a second signal."""
    main = """
        stopping = asyncio.ensure_future(stop_requested())
        await asyncio.sleep(0)
        print("ready", flush=True)
        await stopping
        print("stopping", flush=True)
        await asyncio.sleep(60)
    """
    with process(main) as started:
        assert said(started) == "ready"
        started.send_signal(number)
        assert said(started) == "stopping"
        started.send_signal(number)
        assert started.wait(_LIMIT_SECONDS) == (130 if number is signal.SIGINT else -number)


def test_a_fault_is_one_line_of_json() -> None:
    """Where no person watches, an error is logged in one line, with the trace that leads to it."""
    main = """
        logs.configure("info")
        try:
            1 / 0
        except ZeroDivisionError as error:
            structlog.get_logger("test").error("unhandled error", exc_info=error)
    """
    with process(main) as started:
        _, stderr = started.communicate(timeout=_LIMIT_SECONDS)
    line = json.loads(stderr)
    assert (line["message"], line["level"], line["logger"]) == ("unhandled error", "error", "test")
    assert line["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert line["exception"][0]["frames"][-1]["name"] == "main"


def test_a_fault_is_logged_without_what_was_in_hand() -> None:
    """The local variables of a fault may be a customer's, and stay out of the logs, whoever logs it."""
    main = """
        logs.configure("info")
        secret = "sword" + "fish"
        try:
            1 / 0
        except ZeroDivisionError as error:
            structlog.get_logger("test").error("unhandled error", exc_info=error)
            logging.getLogger("library").exception("unhandled error")
    """
    with process(main) as started:
        _, stderr = started.communicate(timeout=_LIMIT_SECONDS)
    assert len(stderr.splitlines()) == 2
    assert stderr.count("ZeroDivisionError") == 2
    assert "swordfish" not in stderr


@pytest.mark.parametrize(("level", "logged"), [("warning", ["mine", "theirs"]), ("info", ["mine", "a word", "theirs"])])
def test_no_more_is_logged_than_asked(level: str, logged: list[str]) -> None:
    """The level holds for this process' own logs and those of its libraries; gRPC and Alembic are quieter."""
    main = f"""
        logs.configure("{level}")
        log = structlog.get_logger("test")
        log.warning("mine")
        log.info("a word")
        log.debug("chatter")
        logging.getLogger("library").warning("theirs")
        logging.getLogger("library").debug("chatter")
        logging.getLogger("grpc").debug("chatter")
        logging.getLogger("alembic").info("chatter")
    """
    with process(main) as started:
        _, stderr = started.communicate(timeout=_LIMIT_SECONDS)
    assert [json.loads(line)["message"] for line in stderr.splitlines()] == logged
