"""The life of a call is as grpc.aio has it, on the wire and in process: metadata, streams, cancellation, channels."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import grpc
import pytest
from grpcmesh_tests.echo import (
    EchoRequest,
    EchoResponse,
    Endless,
    Serve,
    Waiting,
    every_method,
    refused,
    respond,
    result,
    soon,
    unary_and_stream,
)

_who: ContextVar[str] = ContextVar("who", default="nobody")


async def count(request: Any, context: Any) -> AsyncIterator[Any]:
    for number in range(request.times):
        yield EchoResponse(number=number)


@unary_and_stream
async def test_metadata_go_both_ways(serve: Serve, method: str) -> None:
    """The servicer reads the caller's metadata; the caller reads the servicer's, sent first and last."""
    received = []

    async def behaviour(request: Any, context: Any) -> Any:
        received.extend(context.invocation_metadata())
        await context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"), ("last-bin", b"\0\xff")))
        return EchoResponse()

    stub = await serve(**every_method(behaviour))
    call = getattr(stub, method)(EchoRequest(), metadata=(("who", "ada"), ("key-bin", b"\0\xff"), ("who", "eve")))
    await result(call)
    assert tuple(await soon(call.initial_metadata())) == (("first", "1"),)
    assert tuple(await soon(call.trailing_metadata())) == (("last", "2"), ("last-bin", b"\0\xff"))
    assert ("key-bin", b"\0\xff") in received
    assert [datum.value for datum in received if datum.key == "who"] == ["ada", "eve"]


async def test_an_error_has_all_metadata(serve: Serve) -> None:
    """A call that fails has the metadata that were sent, at the error as at the call."""

    async def behaviour(request: Any, context: Any) -> Any:
        await context.send_initial_metadata((("first", "1"),))
        await context.abort(grpc.StatusCode.ABORTED, "no", (("last", "2"),))

    stub = await serve(**every_method(behaviour))
    call = stub.Say(EchoRequest())
    error = await refused(call)
    assert (tuple(error.initial_metadata()), tuple(error.trailing_metadata())) == ((("first", "1"),), (("last", "2"),))
    assert tuple(await call.initial_metadata()) == (("first", "1"),)
    assert tuple(await call.trailing_metadata()) == (("last", "2"),)
    assert (await call.code(), await call.details()) == (grpc.StatusCode.ABORTED, "no")


@pytest.mark.parametrize("sent", [(), (("a", "b"),)], ids=["none", "some"])
async def test_initial_metadata_come_before_the_first_message(serve: Serve, sent: Any) -> None:
    """What a servicer sends first, if nothing, reaches a caller whose first message is yet to come."""

    async def behaviour(request: Any, context: Any) -> Any:
        await context.send_initial_metadata(sent)
        await Waiting()(request, context)

    stub = await serve(**every_method(behaviour))
    call = stub.Repeat(EchoRequest())
    assert tuple(await soon(call.initial_metadata())) == sent
    call.cancel()


async def test_initial_metadata_come_no_later_than_the_first_message(serve: Serve) -> None:
    """Whoever has read a message of a stream can have its initial metadata, sent or not."""

    async def repeat(request: Any, context: Any) -> AsyncIterator[Any]:
        yield EchoResponse()
        await Waiting()(request, context)

    stub = await serve(Repeat=repeat)
    call = stub.Repeat(EchoRequest())
    await soon(call.read())
    assert tuple(await soon(call.initial_metadata())) == ()
    call.cancel()


async def test_initial_metadata_are_sent_once(serve: Serve) -> None:
    """Initial metadata that come after others are a mistake of the servicer's."""

    async def behaviour(request: Any, context: Any) -> Any:
        await context.send_initial_metadata(())
        with pytest.raises(grpc.aio.UsageError):
            await context.send_initial_metadata(())
        return EchoResponse(text="noticed")

    stub = await serve(**every_method(behaviour))
    assert (await stub.Say(EchoRequest())).text == "noticed"


@unary_and_stream
async def test_callbacks_come_when_the_call_is_done(serve: Serve, method: str) -> None:
    """Both ends are called back with their end of the call; a caller that asks later, at once."""
    done: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()

    async def behaviour(request: Any, context: Any) -> Any:
        context.add_done_callback(lambda context: done.put_nowait(("server", context.done())))
        return EchoResponse()

    stub = await serve(**every_method(behaviour))
    call = getattr(stub, method)(EchoRequest())
    call.add_done_callback(lambda call: done.put_nowait(("client", call.done())))
    assert not call.done()
    await result(call)
    assert (await soon(call.code()), await call.details()) == (grpc.StatusCode.OK, "")
    assert (tuple(await call.initial_metadata()), tuple(await call.trailing_metadata())) == ((), ())
    assert {await soon(done.get()), await soon(done.get())} == {("client", True), ("server", True)}
    call.add_done_callback(lambda call: done.put_nowait(("late", call.done())))
    assert done.get_nowait() == ("late", True)
    assert (call.cancelled(), call.cancel()) == (False, False)


async def test_a_servicer_does_not_know_its_callers_context(serve: Serve) -> None:
    """What a caller has in context variables stays with the caller, and the servicer's with the servicer."""

    async def behaviour(request: Any, context: Any) -> Any:
        seen = _who.get()
        _who.set("the servicer")
        return EchoResponse(text=seen)

    stub = await serve(**every_method(behaviour))
    _who.set("ada")
    assert (await stub.Say(EchoRequest())).text == "nobody"
    assert (await result(stub.Repeat(EchoRequest()))).text == "nobody"
    assert _who.get() == "ada"


async def test_calls_run_side_by_side(serve: Serve) -> None:
    """No call waits for another, and each has its own answer, as often as it is awaited."""
    meeting = asyncio.Barrier(20)

    async def behaviour(request: Any, context: Any) -> Any:
        await meeting.wait()
        return EchoResponse(number=request.times)

    stub = await serve(**every_method(behaviour))
    calls = [stub.Say(EchoRequest(times=number)) for number in range(20)]
    for _ in range(2):
        assert [response.number for response in await soon(asyncio.gather(*calls))] == list(range(20))


@pytest.mark.parametrize("times", [0, 500])
async def test_a_stream_keeps_its_order(serve: Serve, times: int) -> None:
    """Every message of a stream, if there are any, is read once, in the order it was sent."""
    stub = await serve(Repeat=count)
    assert [message.number async for message in stub.Repeat(EchoRequest(times=times))] == list(range(times))


async def test_a_stream_can_be_read_message_by_message(serve: Serve) -> None:
    """read() gives one message after the other, then EOF as often as it is asked; iteration is not for such a call."""
    stub = await serve(Repeat=count)
    call = stub.Repeat(EchoRequest(times=2))
    assert [(await call.read()).number for _ in range(2)] == [0, 1]
    assert [await call.read() for _ in range(2)] == [grpc.aio.EOF] * 2
    assert await call.code() is grpc.StatusCode.OK
    with pytest.raises(grpc.aio.UsageError):
        aiter(call)


async def test_a_stream_waits_for_its_reader(serve: Serve) -> None:
    """A servicer whose reader has stopped is not asked for more than a window's worth, and loses none of it."""
    endless = Endless()
    stub = await serve(Repeat=endless.repeat)
    call = stub.Repeat(EchoRequest())
    assert (await call.read()).number == 1
    ahead = await endless.settled()
    assert not endless.stopped.is_set()
    assert [(await soon(call.read())).number for _ in range(ahead)] == list(range(2, ahead + 2))
    call.cancel()


async def test_a_reader_may_pause_and_leave(serve: Serve) -> None:
    """A reader that breaks out of a stream can read on where it stopped, and ends the stream by cancelling it."""
    endless = Endless()
    stub = await serve(Repeat=endless.repeat)
    call = stub.Repeat(EchoRequest())
    for expected in (1, 2):
        async for message in call:
            assert message.number == expected
            break
    assert not endless.stopped.is_set()
    assert call.cancel()
    await soon(endless.stopped.wait())
    with pytest.raises(asyncio.CancelledError):
        await soon(anext(aiter(call)))


@unary_and_stream
async def test_a_cancelled_call_is_cancelled_at_both_ends(serve: Serve, method: str) -> None:
    """cancel() reaches the servicer, and whoever awaits the call sees CancelledError."""
    waiting = Waiting()
    stub = await serve(**every_method(waiting))
    call = getattr(stub, method)(EchoRequest())
    await soon(waiting.begun.wait())
    assert (call.cancel(), call.cancel()) == (True, False)
    with pytest.raises(asyncio.CancelledError):
        await soon(result(call))
    await soon(waiting.cancelled.wait())
    assert (call.done(), call.cancelled()) == (True, True)
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert await call.details() == "Locally cancelled by application!"
    assert (tuple(await call.initial_metadata()), tuple(await call.trailing_metadata())) == ((), ())


@unary_and_stream
async def test_a_call_can_be_cancelled_before_it_begins(serve: Serve, method: str) -> None:
    """A call that is cancelled as soon as it is made ends as any cancelled call."""
    stub = await serve(**every_method(respond))
    call = getattr(stub, method)(EchoRequest())
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(result(call))
    assert await call.code() is grpc.StatusCode.CANCELLED


@unary_and_stream
async def test_whoever_stops_waiting_cancels_the_call(serve: Serve, method: str) -> None:
    """Cancelling the task that awaits a call cancels the call."""
    waiting = Waiting()
    stub = await serve(**every_method(waiting))
    call = getattr(stub, method)(EchoRequest())
    task = asyncio.create_task(result(call))
    await soon(waiting.begun.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    await soon(waiting.cancelled.wait())
    assert call.cancelled()


@unary_and_stream
async def test_a_closed_channel_has_no_calls(serve: Serve, method: str) -> None:
    """Closing a channel cancels the calls that are open on it, and no more can be made."""
    waiting = Waiting()
    stub = await serve(**every_method(waiting))
    async with stub.channel as channel:
        await soon(channel.channel_ready())
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        call = getattr(stub, method)(EchoRequest())
        await soon(waiting.begun.wait())
    with pytest.raises(asyncio.CancelledError):
        await soon(result(call))
    await soon(waiting.cancelled.wait())
    with pytest.raises(grpc.aio.UsageError):
        getattr(stub, method)(EchoRequest())
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


@unary_and_stream
async def test_a_channel_may_let_its_calls_finish(serve: Serve, method: str) -> None:
    """A channel that is closed with a grace waits as long for the calls that are open."""
    begun, finish = asyncio.Event(), asyncio.Event()

    async def behaviour(request: Any, context: Any) -> Any:
        begun.set()
        await finish.wait()
        return EchoResponse(text="finished")

    stub = await serve(**every_method(behaviour))
    answered = asyncio.create_task(result(getattr(stub, method)(EchoRequest())))
    await soon(begun.wait())
    closing = asyncio.create_task(stub.channel.close(grace=3))
    asyncio.get_running_loop().call_later(0.05, finish.set)
    await soon(closing)
    assert (await soon(answered)).text == "finished"
