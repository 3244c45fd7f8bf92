"""A throw-away Postgres for tests: a cluster of its own on a free port, with a role and a database for whoever asks."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import sqlalchemy as sa

from tests.ports import free_port


def _names(folder: Path) -> set[str]:
    return {program for program in ("initdb", "postgres") if (folder / program).exists()}


_DEBIAN = Path("/usr/lib/postgresql/15/bin")  # not in the PATH there
_START_LIMIT_SECONDS = 30.0
PROGRAMS = next(
    (path for path in (_DEBIAN, *map(Path, os.get_exec_path())) if {"initdb", "postgres"} <= _names(path)), None
)
"""Where Postgres' programs are; None where there are none."""
DATABASES = ("sqlite", "postgresql") if PROGRAMS else ("sqlite",)
"""The kinds of database that stores are tested on here."""
MISSING = "LEFT OUT: no Postgres here (Debian: apt-get install postgresql-15), so its tests are not run"


class Postgres:
    """A cluster, which may be killed: what it has written the machine keeps, whether or not it was synced."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        """Without `fsync` it waits for no disk, which a machine that runs several of them has too little of."""
        assert PROGRAMS is not None, MISSING
        self._programs = PROGRAMS
        self.folder = folder
        self._fsync = "on" if fsync else "off"
        self.port = free_port()
        # Postgres refuses to run as root.
        self._as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
        if self._as_user:
            shutil.chown(folder, "nobody")
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        self._run("initdb", f"--pgdata={folder}/data", *options)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        settings |= {"fsync": self._fsync}
        command = [*self._as_user, f"{self._programs}/postgres", "-D", f"{self.folder}/data"]
        command += [f"--{name}={value}" for name, value in settings.items()]
        with (self.folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", start_new_session=True)
        end = time.monotonic() + _START_LIMIT_SECONDS
        try:
            while not self._takes_connections():
                assert time.monotonic() < end, (self.folder / "postgres.log").read_text()
                assert self._process.poll() is None, (self.folder / "postgres.log").read_text()
                time.sleep(0.02)  # another process comes up, and offers no way to be told of it
        except BaseException:  # what has started would be left to nobody
            self.stop()
            raise

    def kill(self) -> None:
        """SIGKILLs every process of it."""
        self._signal(signal.SIGKILL)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """SIGSTOPs every process of it."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stops it at once, if it runs."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_START_LIMIT_SECONDS)
            self._process = None

    def database(self) -> str:
        """Creates a database with a role of its own, which may do nothing elsewhere; answers its URL."""
        name = f"test_{uuid4().hex}"
        engine = sa.create_engine(self.url("postgres", "postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in (
                f"CREATE ROLE {name} LOGIN",
                f"CREATE DATABASE {name} OWNER {name}",
                f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
            ):
                connection.execute(sa.text(statement))
        engine.dispose()
        return self.url(name, name)

    def url(self, role: str, database: str) -> str:
        return f"postgresql+psycopg://{role}@127.0.0.1:{self.port}/{database}"

    def _signal(self, number: int) -> None:
        """To the postmaster first, so that it starts no others; each of its children leads a group of its own."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:  # it has ended meanwhile
                continue
        if number == signal.SIGKILL:
            self._process.wait()
            self._process = None

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, f"{self._programs}/{program}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr

    def _takes_connections(self) -> bool:
        try:
            psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            return False
        return True


class Databases:
    """A database for each service and folder: a file of SQLite in it, unless there is a Postgres to be used."""

    def __init__(self, postgres: Postgres | None = None) -> None:
        self.postgres = postgres
        self._urls: dict[tuple[str, Path], str] = {}

    def url(self, service: str, folder: Path) -> str:
        """The same one whenever it is asked for."""
        if self.postgres is None:
            return f"sqlite:///{folder}/{service}.db"
        if (service, folder) not in self._urls:
            self._urls[service, folder] = self.postgres.database()
        return self._urls[service, folder]


@contextmanager
def postgres(*, fsync: bool = False) -> Iterator[Postgres]:
    """A cluster that is gone afterwards. Its folder is one that the user whom it runs as may enter."""
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        cluster = Postgres(Path(folder), fsync=fsync)
        try:
            yield cluster
        finally:
            cluster.stop()
