"""The server's rules around a handler: each is resolved once per method, when the servicer is added, not per call."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status
from protovalidate import Validator

from grpcmesh import deadlines
from grpcmesh.contract import ANYONE, Method, Reason
from grpcmesh.errors import (
    CALLER_NOT_ALLOWED,
    CALLER_UNKNOWN,
    DRAINING,
    INTERNAL,
    INVALID_REQUEST,
    TIMEOUT,
    status_for,
    status_for_violations,
    status_of,
)
from grpcmesh.identity import caller_of
from grpcmesh.tracing import Tracing, owe_trace_id, send_trace_id
from grpcmesh.workload import Workload

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any
"""A grpc.RpcMethodHandler; its published types are those of the synchronous server."""
Answer = Callable[[Any, Context], Awaitable[Any]]
Check = Callable[[Method, Message], None]
Refusals = Mapping[type[Exception], Reason]

_log = structlog.get_logger("grpcmesh")
_validator = Validator()


class Streams:
    """The answer streams that are open, so that a draining server can send their readers elsewhere."""

    def __init__(self) -> None:
        self.draining = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def drain(self) -> None:
        """Ends every open stream with UNAVAILABLE (DRAINING); readers resume on another server."""
        self.draining = True
        for task in self._tasks:
            task.cancel()

    def enter(self) -> asyncio.Task[Any]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # a handler runs in a task of its own
        self._tasks.add(task)
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)


def enforce(method: Method, handler: Handler, refusals: Refusals, streams: Streams, workload: Workload) -> Handler:
    """The handler with its contract around it: who may call, valid requests, answers of the right type, reasons."""
    _validator.collect_violations(method.request())  # compiles the rules now, rather than in the first call
    if handler.request_streaming:
        raise NotImplementedError(f"{method.path}: streams of requests are in no contract yet")
    check = _check_valid_answer if workload.check_answers else _check_answer
    if handler.response_streaming:
        answer = _streaming(method, handler.unary_stream, refusals, check, streams)
        kind = grpc.unary_stream_rpc_method_handler
    else:
        answer = _unary(method, handler.unary_unary, refusals, check)
        kind = grpc.unary_unary_rpc_method_handler
    if workload.tracing.enabled:
        answer = _traced(method, answer, workload.tracing)
    return kind(answer, _decoder(method.request), handler.response_serializer)


def _traced(method: Method, answer: Answer, tracing: Tracing) -> Answer:
    """The span of a call around everything else, so that refusals are seen; answers say which trace they are in."""

    async def traced(request: Any, context: Context) -> Any:
        with tracing.server_span(method, context) as span:
            if span.is_recording():  # sending costs something, and what was not sampled cannot be looked up
                owe_trace_id(span)
            return await answer(request, context)

    return traced


def _unary(
    method: Method, behaviour: Callable[[Message, Context], Awaitable[Message]], refusals: Refusals, check: Check
) -> Answer:
    async def answer(request: Any, context: Context) -> Message:
        limit = _enter(method, context)
        try:
            async with limit:
                await _check_caller(method, context)
                await _check_request(request, context)
                response = await behaviour(request, context)
                check(method, response)
                await send_trace_id(context)
                return response
        except grpc.aio.AbortError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            await _refuse(method, error, limit, refusals, context)

    return answer


def _streaming(
    method: Method,
    behaviour: Callable[[Message, Context], AsyncGenerator[Message, None]],
    refusals: Refusals,
    check: Check,
    streams: Streams,
) -> Answer:
    # Writes the answers itself rather than yielding them: so a reader that does not read is inside the limit as well.
    async def answer(request: Any, context: Context) -> None:
        limit = _enter(method, context)
        task = streams.enter()
        try:
            async with limit:
                await _check_caller(method, context)
                await _check_request(request, context)
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        check(method, response)
                        await send_trace_id(context)
                        await context.write(response)
        except grpc.aio.AbortError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if streams.draining and isinstance(error, asyncio.CancelledError):
                task.uncancel()
                await _abort(context, status_of(DRAINING, "the server is about to stop; resume on another"))
            await _refuse(method, error, limit, refusals, context)
        finally:
            streams.leave(task)

    return answer


def _enter(method: Method, context: Context) -> asyncio.Timeout:
    """Notes the deadline for the calls that the handler makes, and gives the ceiling that the server holds itself."""
    remaining = context.time_remaining()
    deadlines.enter(remaining, method.timeout)
    # gRPC holds the caller's own deadline where that is the nearer one.
    return asyncio.timeout(None if remaining is not None and remaining <= method.timeout else method.timeout)


def _decoder(request_type: type[Message]) -> Callable[[bytes], Message | DecodeError]:
    """Hands an undecodable request on as its error: raised here, gRPC would answer it without a reason."""

    def decode(data: bytes) -> Message | DecodeError:
        try:
            return request_type.FromString(data)
        except DecodeError as error:
            return error

    return decode


async def _check_caller(method: Method, context: Context) -> None:
    if ANYONE in method.callers:
        return
    caller = caller_of(context)
    if caller is None:
        await _abort(context, status_of(CALLER_UNKNOWN, f"{method.path} is for {_names(method)}; who calls?"))
    if caller not in method.callers:
        message = f"{method.path} is for {_names(method)}, not for {caller}"
        await _abort(context, status_of(CALLER_NOT_ALLOWED, message, {"caller": caller}))


def _names(method: Method) -> str:
    return ", ".join(sorted(method.callers))


async def _check_request(request: Message | DecodeError, context: Context) -> None:
    if isinstance(request, DecodeError):
        await _abort(context, status_of(INVALID_REQUEST, f"the request is no message of this method's: {request}"))
    if violations := _validator.collect_violations(request):
        await _abort(context, status_for_violations(violations))


def _check_answer(method: Method, response: Message) -> None:
    if not isinstance(response, method.response):
        raise TypeError(f"{method.path} answers {method.response.__name__}, not {type(response).__name__}")


def _check_valid_answer(method: Method, response: Message) -> None:
    _check_answer(method, response)
    _validator.validate(response)


async def _refuse(
    method: Method, error: BaseException, limit: asyncio.Timeout, refusals: Refusals, context: Context
) -> NoReturn:
    """Answers a domain's exception with the reason that the service gives it, and any other with INTERNAL."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error  # the caller has gone, or the server stops
    if (isinstance(error, TimeoutError) and limit.expired()) or _is_own_deadline(error):
        await _abort(context, status_of(TIMEOUT, f"{method.path} took longer than {method.timeout:g} s"))
    for kind in type(error).__mro__:
        if kind in refusals:
            await _abort(context, status_for(error, refusals[kind]))
    _log.error("unhandled error", method=method.path, exc_info=error)
    await _abort(context, status_of(INTERNAL, "a fault of the server's; its logs hold it"))


def _is_own_deadline(error: BaseException) -> bool:
    """Whether a call that the handler made ran out of the time that the handler itself had."""
    return (
        isinstance(error, grpc.aio.AioRpcError)
        and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        and deadlines.passed()
    )


async def _abort(context: Context, status: status_pb2.Status) -> NoReturn:
    if status.code != grpc.StatusCode.UNAVAILABLE.value[0]:  # which alone is retried, and only where nothing was sent
        await send_trace_id(context)
    await context.abort_with_status(rpc_status.to_status(status))
