"""A handler with the rules of its method around it, in their order."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from grpcmesh import rules
from grpcmesh.contract import Method
from grpcmesh.drain import Streams
from grpcmesh.errors import Errors
from grpcmesh.grpc_types import Context, Handler
from grpcmesh.rules import Handle, Respond
from grpcmesh.workload import Workload


def enforce(method: Method, handler: Handler, errors: Errors, streams: Streams, workload: Workload) -> Handler:
    """Returns the handler with the rules of its method around it; `errors` are those of its service.

    Raises NotImplementedError where requests are a stream.
    """
    if handler.request_streaming:
        raise NotImplementedError(f"{method.path}: streams of requests are in no contract yet")
    rules.validator.collect_violations(method.request())  # compiles its rules now, rather than in the first call
    streaming = handler.response_streaming
    handle = _streamed(handler.unary_stream) if streaming else _returned(handler.unary_unary)
    # From the inside out: a call meets the last rule first.
    handle = rules.valid_responses(handle, method, validated=workload.check_responses)
    handle = rules.valid_requests(handle)
    handle = rules.known_callers(handle, method)
    handle = rules.in_time(handle, method)
    handle = rules.until_the_drain(handle, streams) if streaming else handle
    handle = rules.errors_with_reasons(handle, method, errors)
    handle = rules.traced(handle, method, workload.tracing)
    behaviour, kind = (
        (_writing(handle), grpc.unary_stream_rpc_method_handler)
        if streaming
        else (_returning(handle), grpc.unary_unary_rpc_method_handler)
    )
    return kind(behaviour, _decoder(method.request), handler.response_serializer)


# Between gRPC's handlers and ours.


def _returned(behaviour: Callable[[Message, Context], Awaitable[Message]]) -> Handle:
    async def handle(request: Any, context: Context, respond: Respond) -> None:
        await respond(await behaviour(request, context))

    return handle


def _streamed(behaviour: Callable[[Message, Context], AsyncGenerator[Message, None]]) -> Handle:
    async def handle(request: Any, context: Context, respond: Respond) -> None:
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                await respond(response)

    return handle


def _returning(handle: Handle) -> Callable[[Any, Context], Awaitable[Message]]:
    async def behaviour(request: Any, context: Context) -> Message:
        responses: list[Message] = []

        async def respond(response: Message) -> None:
            responses.append(response)

        await handle(request, context, respond)
        return responses[0]

    return behaviour


def _writing(handle: Handle) -> Callable[[Any, Context], Awaitable[None]]:
    async def behaviour(request: Any, context: Context) -> None:
        await handle(request, context, context.write)

    return behaviour


def _decoder(request_type: type[Message]) -> Callable[[bytes], Message | DecodeError]:
    """Hands on an undecodable request as its error: raised here, gRPC would end the call without a reason."""

    def decode(data: bytes) -> Message | DecodeError:
        try:
            return request_type.FromString(data)
        except DecodeError as error:
            return error

    return decode
