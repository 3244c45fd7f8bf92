"""Ports for processes that tests start."""

import random
import socket
from contextlib import closing


def free_port() -> int:
    """A port below the ephemeral range that nobody holds right now."""
    while True:
        port = random.randrange(20_000, 32_000)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether nobody listens there."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
