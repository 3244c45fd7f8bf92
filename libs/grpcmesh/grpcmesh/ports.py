"""Binding a server to an address, with one clear line where that cannot be."""

import socket

import grpc

from grpcmesh.process import StartError

_LAST_PORT = 65_535


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """Binds a server to "host:port", in plain text without credentials, and returns the port (0 asks for a free one).

    Raises StartError where the address is none, is taken, or is not one of this machine's.
    """
    _try_once(address)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address!r}: {error}") from error


def _try_once(address: str) -> None:
    """Binds and lets go: the system's error is one clear line, where gRPC writes several to stderr."""
    host, _, port = address.rpartition(":")
    try:
        if not host or not port.isdecimal() or int(port) > _LAST_PORT:
            raise ValueError("an address is host:port")
        family, kind, protocol, _, resolved = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(resolved)
    except (OSError, ValueError) as error:
        raise StartError(f"cannot listen on {address!r}: {error}") from error
