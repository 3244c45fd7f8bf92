"""The databases that stores are tested on: SQLite everywhere, and Postgres where its programs are found."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import DATABASES, MISSING, PROGRAMS, Postgres, postgres


@pytest.fixture(scope="session")
def cluster() -> Iterator[Postgres]:
    """The Postgres of the whole run, which is started for the first test that wants it."""
    if PROGRAMS is None:
        pytest.skip(MISSING)
    with postgres() as cluster:
        yield cluster


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of each kind that a store may use."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    cluster: Postgres = request.getfixturevalue("cluster")
    return cluster.database()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if PROGRAMS is None:
        terminalreporter.write_line(MISSING)
