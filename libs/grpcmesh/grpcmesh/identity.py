"""Who a workload is: its certificate with a SPIFFE id (https://spiffe.io), and who its callers are.

The trust domain is the CA: whoever it has signed is the workload that the certificate's spiffe://DOMAIN/WORKLOAD names.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from grpcmesh.grpc_types import Context
from grpcmesh.process import StartError

_SPIFFE_ID = "peer_spiffe_id"  # gRPC's name for it in the auth context
_FOLDER = "MESH_CERTIFICATES"
_FILES = ("tls.crt", "tls.key", "ca.crt")  # the names in a Kubernetes TLS secret, and cert-manager's
_log = structlog.get_logger("grpcmesh")


@dataclass(frozen=True)
class Pems:
    """The files as they were at one moment."""

    certificate: bytes
    key: bytes
    authority: bytes


class Certificates:
    """A workload's certificate, its key and the CA's certificates, in a folder whose files may change at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.read()

    @classmethod
    def from_environment(cls) -> "Certificates | None":
        """Returns those in the folder that MESH_CERTIFICATES names, if it does; raises StartError as `read` does."""
        folder = os.environ.get(_FOLDER)
        return cls(Path(folder)) if folder else None

    def version(self) -> tuple[int, ...]:
        """Returns what changes when a file does. Raises OSError where one is missing."""
        stats = [(self._folder / name).stat() for name in _FILES]
        return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_ino))

    def read(self) -> Pems:
        """Returns the files, all of one moment; raises StartError where they cannot be read or do not fit together."""
        paths = certificate, key, authority = [self._folder / name for name in _FILES]
        try:
            while True:
                before = self.version()
                pems = Pems(*(path.read_bytes() for path in paths))
                # gRPC would take anything here, and fail each handshake. They do not fit between the swap of one file
                # and that of the next.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_cert_chain(certificate, key, password="")
                context.load_verify_locations(authority)
                if self.version() == before:
                    return pems
        except OSError as error:  # ssl.SSLError among them
            raise StartError(f"{_FOLDER}={self._folder}: {error}") from error

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Returns credentials that show the certificate of now, and trust servers that the CA has signed.

        A channel cannot change them. Raises StartError as `read` does.
        """
        pems = self.read()
        return grpc.ssl_channel_credentials(pems.authority, pems.key, pems.certificate)

    def server_credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Returns credentials that show the certificate, and the next one once it has changed.

        Where they are `mutual`, callers must show one as well. Raises StartError as `read` does.
        """
        version = self.version()

        def fetch() -> Any:
            nonlocal version
            try:
                current = self.version()
                if current == version:
                    return None  # as before
                configuration = self._server_configuration(mutual)
            except (OSError, StartError) as error:
                _log.error("the new certificates cannot be used; keeping the old ones", error=str(error))
                return None
            version = current
            return configuration

        return grpc.dynamic_ssl_server_credentials(self._server_configuration(mutual), fetch, mutual)

    def _server_configuration(self, mutual: bool) -> Any:
        pems = self.read()
        return grpc.ssl_server_certificate_configuration(
            [(pems.key, pems.certificate)], pems.authority if mutual else None
        )


def caller_of(context: Context) -> str | None:
    """Returns the workload that calls, by the last part of its certificate's SPIFFE id; None without one."""
    ids = context.auth_context().get(_SPIFFE_ID)
    return next(iter(ids)).decode().rpartition("/")[2] if ids else None


def auth_context(caller: str) -> dict[str, list[bytes]]:
    """Returns what gRPC would tell of a caller, for calls that stay inside the process."""
    return {_SPIFFE_ID: [f"spiffe://in-process/{caller}".encode()]}
