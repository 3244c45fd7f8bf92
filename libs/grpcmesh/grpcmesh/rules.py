"""The rules that the contract sets around a handler, each read by itself, in the order in which a call meets them.

A rule takes what handles a call and returns what handles it under the rule. It is set once per method, when the
servicer is added, so that each call pays only for what depends on the call.
"""

import asyncio
from collections.abc import Awaitable, Callable
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
from grpcmesh.grpc_types import Context
from grpcmesh.identity import caller_of
from grpcmesh.tracing import Tracing, defer_trace_id, send_trace_id

Respond = Callable[[Message], Awaitable[None]]
"""Takes a response on its way to the caller."""
Handle = Callable[[Any, Context, Respond], Awaitable[None]]
"""Handles a call: its request (or the DecodeError that it is), its context, and what takes its responses."""

_log = structlog.get_logger("grpcmesh")
validator = Validator()


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
        if violations := validator.collect_violations(request):
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
                validator.validate(response)
            await respond(response)

        await handle(request, context, respond_if_valid)

    return handled


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
