"""The server's rules around a handler: each is resolved once per method, when the servicer is added, not per call."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_status import rpc_status
from protovalidate import Validator

from grpcmesh import deadlines
from grpcmesh.contract import Method, Reason
from grpcmesh.errors import (
    DRAINING,
    INTERNAL,
    INVALID_REQUEST,
    TIMEOUT,
    status_for,
    status_for_violations,
    status_of,
)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Any
"""A grpc.RpcMethodHandler; its published types are those of the synchronous server."""
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


def enforce(method: Method, handler: Handler, refusals: Refusals, streams: Streams) -> Handler:
    """The handler with its contract around it: valid requests, answers of the right type, refusals with a reason."""
    _validator.collect_violations(method.request())  # compiles the rules now, rather than in the first call
    if handler.request_streaming:
        raise NotImplementedError(f"{method.path}: streams of requests are in no contract yet")
    deserialize = _decoder(method.request)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            _streaming(method, handler.unary_stream, refusals, streams), deserialize, handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(
        _unary(method, handler.unary_unary, refusals), deserialize, handler.response_serializer
    )


def _unary(
    method: Method, behaviour: Callable[[Message, Context], Awaitable[Message]], refusals: Refusals
) -> Callable[[Any, Context], Awaitable[Message]]:
    async def answer(request: Any, context: Context) -> Message:
        ceiling = _enter(method, context)
        limit = asyncio.timeout(ceiling)
        try:
            async with limit:
                await _check_request(request, context)
                return _checked_answer(method, await behaviour(request, context))
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                await _abort(context, _timed_out(method))
            await _refuse(method, error, refusals, context)

    return answer


def _streaming(
    method: Method,
    behaviour: Callable[[Message, Context], AsyncGenerator[Message, None]],
    refusals: Refusals,
    streams: Streams,
) -> Callable[[Any, Context], AsyncIterator[Message]]:
    async def answers(request: Any, context: Context) -> AsyncIterator[Message]:
        ceiling = _enter(method, context)
        limit = asyncio.timeout(ceiling)
        task = streams.enter()
        try:
            async with limit:
                await _check_request(request, context)
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield _checked_answer(method, response)
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if not streams.draining:
                raise
            task.uncancel()
            await _abort(context, status_of(DRAINING, "the server is about to stop; resume on another"))
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                await _abort(context, _timed_out(method))
            await _refuse(method, error, refusals, context)
        finally:
            streams.leave(task)

    return answers


def _enter(method: Method, context: Context) -> float | None:
    """Notes the deadline for the calls that the handler makes, and gives the ceiling that the server must hold itself.

    None where the caller's own deadline is the nearer one: gRPC holds that.
    """
    remaining = context.time_remaining()
    deadlines.enter(remaining, method.timeout)
    return None if remaining is not None and remaining <= method.timeout else method.timeout


def _decoder(request_type: type[Message]) -> Callable[[bytes], Message | DecodeError]:
    """Hands an undecodable request on as its error: raised here, gRPC would answer it without a reason."""

    def decode(data: bytes) -> Message | DecodeError:
        try:
            return request_type.FromString(data)
        except DecodeError as error:
            return error

    return decode


async def _check_request(request: Message | DecodeError, context: Context) -> None:
    if isinstance(request, DecodeError):
        await _abort(context, status_of(INVALID_REQUEST, f"the request is no message of this method's: {request}"))
    if violations := _validator.collect_violations(request):
        await _abort(context, status_for_violations(violations))


def _checked_answer(method: Method, response: Message) -> Message:
    if not isinstance(response, method.response):
        raise TypeError(f"{method.path} answers {method.response.__name__}, not {type(response).__name__}")
    return response


def _timed_out(method: Method) -> status_pb2.Status:
    return status_of(TIMEOUT, f"{method.path} took longer than {method.timeout:g} s")


async def _refuse(method: Method, error: Exception, refusals: Refusals, context: Context) -> NoReturn:
    """Answers a domain's exception with the reason that the service gives it, and any other with INTERNAL."""
    for kind in type(error).__mro__:
        if kind in refusals:
            await _abort(context, status_for(error, refusals[kind]))
    _log.error("unhandled error", method=method.path, exc_info=error)
    await _abort(context, status_of(INTERNAL, "a fault of the server's; its logs hold it"))


async def _abort(context: Context, status: status_pb2.Status) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(status))
