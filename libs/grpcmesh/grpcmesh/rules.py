"""The rules that the contract sets around a handler. Each is read by itself; `enforce` has their order.

A rule takes what handles a call and returns what handles it under the rule. It is set once per method, when the
servicer is added, so that each call pays only for what depends on the call.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status
from protovalidate import Validator

from grpcmesh import deadlines
from grpcmesh.contract import ANYONE, Method
from grpcmesh.drain import Streams
from grpcmesh.errors import (
    CALLER_NOT_ALLOWED,
    CALLER_UNKNOWN,
    INTERNAL,
    INVALID_REQUEST,
    TIMEOUT,
    Errors,
    StatusError,
    status_for,
    status_for_violations,
    status_of,
)
from grpcmesh.grpc_types import Context, Handler
from grpcmesh.identity import caller_of
from grpcmesh.tracing import Tracing, defer_trace_id, send_trace_id
from grpcmesh.workload import Workload

Respond = Callable[[Message], Awaitable[None]]
"""Takes a response on its way to the caller."""
Handle = Callable[[Any, Context, Respond], Awaitable[None]]
"""Handles a call: its request (or the DecodeError that it is), its context, and what takes its responses."""

_log = structlog.get_logger("grpcmesh")
_validator = Validator()


def enforce(method: Method, handler: Handler, errors: Errors, streams: Streams, workload: Workload) -> Handler:
    """Returns the handler with the rules of its method around it; `errors` are those of its service.

    Raises NotImplementedError where requests are a stream.
    """
    if handler.request_streaming:
        raise NotImplementedError(f"{method.path}: streams of requests are in no contract yet")
    _validator.collect_violations(method.request())  # compiles its rules now, rather than in the first call
    streaming = handler.response_streaming
    handle = _streamed(handler.unary_stream) if streaming else _returned(handler.unary_unary)
    # From the inside out: a call meets the last rule first.
    handle = valid_responses(handle, method, validated=workload.check_responses)
    handle = valid_requests(handle)
    handle = known_callers(handle, method)
    handle = in_time(handle, method)
    handle = until_the_drain(handle, streams) if streaming else handle
    handle = errors_with_reasons(handle, method, errors)
    handle = traced(handle, method, workload.tracing)
    behaviour, kind = (
        (_writing(handle), grpc.unary_stream_rpc_method_handler)
        if streaming
        else (_returning(handle), grpc.unary_unary_rpc_method_handler)
    )
    return kind(behaviour, _decoder(method.request), handler.response_serializer)


# The rules, in the order in which a call meets them.


def traced(handle: Handle, method: Method, tracing: Tracing) -> Handle:
    """A call has a span, whatever comes of it; its first response, or its error, tells its caller in which trace."""
    if not tracing.enabled:
        return handle

    async def handled(request: Any, context: Context, respond: Respond) -> None:
        async def respond_with_trace_id(response: Message) -> None:
            await send_trace_id(context)
            await respond(response)

        with tracing.server_span(method, context) as span:
            if span.is_recording():  # sending costs something, and what was not sampled cannot be looked up
                defer_trace_id(span)
            await handle(request, context, respond_with_trace_id)

    return handled


def errors_with_reasons(handle: Handle, method: Method, errors: Errors) -> Handle:
    """A call that fails has a status with a reason: that of its exception in `errors`, or INTERNAL and a log entry."""

    def status(error: BaseException) -> status_pb2.Status:
        if isinstance(error, StatusError):
            return error.status
        for kind in type(error).__mro__:
            if kind in errors:
                return status_for(error, errors[kind])
        _log.error("unhandled error", method=method.path, exc_info=error)
        return status_of(INTERNAL, "a fault of the server's; its logs hold it")

    async def handled(request: Any, context: Context, respond: Respond) -> None:
        try:
            await handle(request, context, respond)
        except grpc.aio.AbortError:  # the servicer has chosen its own status
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the caller has gone, or the server stops
                raise
            await _abort(context, status(error))
        except Exception as error:
            await _abort(context, status(error))

    return handled


def until_the_drain(handle: Handle, streams: Streams) -> Handle:
    """A stream ends when its server drains."""

    async def handled(request: Any, context: Context, respond: Respond) -> None:
        with streams.opened():
            await handle(request, context, respond)

    return handled


def in_time(handle: Handle, method: Method) -> Handle:
    """A call ends at the contract's timeout, whatever its caller has set, and so does every call made on its behalf.

    A response that waits for its reader is inside the limit too.
    """
    ceiling = method.timeout_seconds

    async def handled(request: Any, context: Context, respond: Respond) -> None:
        remaining = context.time_remaining()
        deadlines.enter(remaining, ceiling)
        # gRPC itself holds the caller's deadline where that is the nearer one.
        limit = asyncio.timeout(None if remaining is not None and remaining <= ceiling else ceiling)
        try:
            async with limit:
                await handle(request, context, respond)
        except Exception as error:
            if (isinstance(error, TimeoutError) and limit.expired()) or _is_own_deadline(error):
                raise StatusError(status_of(TIMEOUT, f"{method.path} took longer than {ceiling:g} s")) from error
            raise

    return handled


def known_callers(handle: Handle, method: Method) -> Handle:
    """Whoever the contract does not name among the method's callers is refused, whatever the request says."""
    if ANYONE in method.callers:
        return handle
    names = ", ".join(sorted(method.callers))

    async def handled(request: Any, context: Context, respond: Respond) -> None:
        caller = caller_of(context)
        if caller is None:
            raise StatusError(status_of(CALLER_UNKNOWN, f"{method.path} is for {names}; who calls?"))
        if caller not in method.callers:
            message = f"{method.path} is for {names}, not for {caller}"
            raise StatusError(status_of(CALLER_NOT_ALLOWED, message, {"caller": caller}))
        await handle(request, context, respond)

    return handled


def valid_requests(handle: Handle) -> Handle:
    """A request that is no message of its type, or breaks a rule of buf.validate, is refused with the faulty fields."""

    async def handled(request: Any, context: Context, respond: Respond) -> None:
        if isinstance(request, DecodeError):
            message = f"the request is no message of this method's: {request}"
            raise StatusError(status_of(INVALID_REQUEST, message))
        if violations := _validator.collect_violations(request):
            raise StatusError(status_for_violations(violations))
        await handle(request, context, respond)

    return handled


def valid_responses(handle: Handle, method: Method, *, validated: bool) -> Handle:
    """A response of another type is a fault of the server's; where `validated`, so is one that breaks a rule."""

    async def handled(request: Any, context: Context, respond: Respond) -> None:
        async def respond_if_valid(response: Message) -> None:
            if not isinstance(response, method.response):
                raise TypeError(f"{method.path} returns {method.response.__name__}, not {type(response).__name__}")
            if validated:
                _validator.validate(response)
            await respond(response)

        await handle(request, context, respond_if_valid)

    return handled


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


def _is_own_deadline(error: BaseException) -> bool:
    """Whether a call that the handler made ran out of the time that the handler itself had."""
    return (
        isinstance(error, grpc.aio.AioRpcError)
        and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        and deadlines.passed()
    )


async def _abort(context: Context, status: status_pb2.Status) -> None:
    if status.code != grpc.StatusCode.UNAVAILABLE.value[0]:  # which alone is retried, and only where nothing was sent
        await send_trace_id(context)
    await context.abort_with_status(rpc_status.to_status(status))
