"""What a caller reads of an error: google.rpc.ErrorInfo where it can be read, compared by domain and name."""

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2
from grpcmesh import INVALID_REQUEST, STORE_UNAVAILABLE, Reason, error_info_of
from grpcmesh_tests.echo import EchoRequest, Serve, every_method, refused, unary_and_stream

ABORTED = grpc.StatusCode.ABORTED
INFO = error_details_pb2.ErrorInfo(domain="echo.test", reason="LOUD", metadata={"how": "very"})


def status(*details: Any, code: int = ABORTED.value[0], message: str = "no") -> bytes:
    """A google.rpc.Status as it travels."""
    packed = []
    for detail in details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    return bytes(status_pb2.Status(code=code, message=message, details=packed).SerializeToString())


def broken() -> bytes:
    """A status whose ErrorInfo cannot be decoded."""
    packed = Packed(type_url=f"type.googleapis.com/{INFO.DESCRIPTOR.full_name}", value=b"\xff")
    return bytes(status_pb2.Status(code=ABORTED.value[0], message="no", details=[packed]).SerializeToString())


@unary_and_stream
@pytest.mark.parametrize(
    "trailing",
    [
        None,
        b"\xff\xff",
        status(),
        status(error_details_pb2.BadRequest()),
        status(INFO, code=5),
        status(INFO, message="yes"),
        broken(),
    ],
    ids=["none", "bytes", "no details", "other details", "of another code", "of another message", "broken"],
)
async def test_an_error_that_cannot_be_read_says_nothing(serve: Serve, method: str, trailing: bytes | None) -> None:
    """Whatever the trailing metadata are, reading them raises nothing; where they are no ErrorInfo, there is none."""

    async def behaviour(request: Any, context: Any) -> None:
        await context.abort(ABORTED, "no", (("grpc-status-details-bin", trailing),) if trailing else ())

    stub = await serve(**every_method(behaviour))
    assert error_info_of(await refused(getattr(stub, method)(EchoRequest()))) is None


@unary_and_stream
async def test_an_error_of_another_library_is_read(serve: Serve, method: str) -> None:
    """ErrorInfo is found behind other details, whoever has sent it."""

    async def behaviour(request: Any, context: Any) -> None:
        trailing = ("grpc-status-details-bin", status(error_details_pb2.BadRequest(), INFO))
        await context.abort(ABORTED, "no", (trailing,))

    info = error_info_of(await refused(getattr(await serve(**every_method(behaviour)), method)(EchoRequest())))
    assert info is not None
    assert (info.reason.domain, info.reason.name, info.reason.code) == ("echo.test", "LOUD", ABORTED)
    assert (info.message, info.metadata) == ("no", {"how": "very"})


def test_an_error_that_is_no_call_says_nothing() -> None:
    """An RpcError that comes of no call carries nothing."""
    assert error_info_of(grpc.RpcError()) is None


def test_reasons_are_compared_by_domain_and_name() -> None:
    """AIP-193's key: the status code is no part of it, the domain is."""
    meanings = {INVALID_REQUEST: "invalid", STORE_UNAVAILABLE: "unavailable"}
    assert meanings[Reason("mesh", "INVALID_REQUEST", grpc.StatusCode.UNKNOWN)] == "invalid"
    assert Reason("order.pizza", "INVALID_REQUEST", INVALID_REQUEST.code) not in meanings
