"""What a caller is answered: responses and refusals, the same on the wire and in process."""

import traceback
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpcmesh import Refusal, reason, refusal_of
from structlog.testing import capture_logs
from tests.conftest import Serve
from tests.echo import EchoRequest, EchoResponse, ErrorReason, Word, handlers, result

unary_and_stream = pytest.mark.parametrize("method", ["Say", "Repeat"])


class Fault(Exception):
    """An exception of a domain, which knows no mesh."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.subject = "words[0].letters"
        self.metadata = {"word": "boo"}


class Rude(Fault): ...


class VeryRude(Rude): ...


class Hoarse(Fault): ...


class Silent(Exception): ...


REFUSALS = {
    Rude: reason(ErrorReason, ErrorReason.Value("ERROR_REASON_RUDE")),
    Hoarse: reason(ErrorReason, ErrorReason.Value("ERROR_REASON_HOARSE")),
    Silent: reason(ErrorReason, ErrorReason.Value("ERROR_REASON_SILENT")),
}
INTERNAL = Refusal("INTERNAL", "mesh", "a fault of the server's; its logs hold it")


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await result(call)
    return caught.value


def detail[M: Message](error: grpc.aio.AioRpcError, kind: type[M]) -> M: ...
