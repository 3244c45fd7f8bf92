"""What kitchen and delivery promise alike; the fakes of them are held against it too."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from random import Random
from uuid import uuid4

import grpc
import pytest
from pizza.kitchen.v1 import kitchen_service_pb2 as kitchen_pb
from pizza.kitchen.v1.kitchen_service_pb2_grpc import KitchenServiceStub

from tests.contract.contract import Refusal, refusal_of, refused
from tests.contract.launch import eventually
from tests.contract.providers import PROVIDERS, Provider, Thing


def test_a_thing_is_stored_as_asked_for(provider: Provider) -> None:
    """A submission answers the new thing in its first state, and whoever asks for it gets the same content."""
    thing_id = str(uuid4())
    thing = provider.submit("margherita", thing_id)
    assert provider.id_of(thing) == thing_id
    assert provider.kind.state(thing) == provider.kind.life[0]
    assert thing.update_time == thing.create_time
    assert thing.create_time.seconds > 0
    found = provider.get(thing_id)
    assert found.create_time == thing.create_time
    assert provider.content(found) == provider.content(thing)


def test_a_repeated_submission_answers_the_thing_as_it_stands(provider: Provider) -> None:
    """In whatever state it is, the same id with the same content answers it, and changes nothing."""
    for state in provider.reachable():
        thing = provider.reach(state)
        assert provider.again(thing) == thing
        assert provider.get(provider.id_of(thing)) == thing


def test_an_id_is_taken_by_its_first_content(provider: Provider) -> None:
    """In whatever state it is, the same id with other content is refused, and changes nothing."""
    for state in provider.reachable():
        thing = provider.reach(state)
        assert refused(provider.submit, "bianca", provider.id_of(thing)).why == provider.kind.why("{}_ID_TAKEN")
        assert provider.get(provider.id_of(thing)) == thing


def test_one_of_many_at_once_takes_the_id(provider: Provider) -> None:
    """Submissions of one id at the same time: one content wins and is stored once, the others are refused."""
    thing_id = str(uuid4())

    def submit(content: str) -> Thing | Refusal:
        try:
            return provider.submit(content, thing_id)
        except grpc.RpcError as error:
            return refusal_of(error)

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(submit, ["margherita", "marinara"] * 4))
    stored = provider.content(provider.get(thing_id))
    assert [provider.content(response) for response in responses if not isinstance(response, Refusal)] == [stored] * 4
    refusals = [response.why for response in responses if isinstance(response, Refusal)]
    assert refusals == [provider.kind.why("{}_ID_TAKEN")] * 4
    told = [thing for _, thing in provider.changes_up_to(provider.new()) if provider.id_of(thing) == thing_id]
    assert [provider.kind.state(thing) for thing in told].count(provider.kind.life[0]) == 1


def test_what_is_not_there_is_not_found(provider: Provider) -> None:
    """Neither got nor cancelled."""
    for call in (provider.get, provider.cancel):
        assert refused(call, str(uuid4())).why == provider.kind.why("{}_NOT_FOUND")


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "quick_delivery"], indirect=True)
def test_a_thing_is_cancelled_until_it_is_too_far(provider: Provider) -> None:
    """In each state before, it becomes CANCELLED; cancelling it again answers it unchanged."""
    for state in provider.reachable(*provider.kind.cancellable):
        thing = provider.reach(state)
        cancelled = provider.cancel(provider.id_of(thing))
        assert provider.kind.state(cancelled) == "CANCELLED"
        assert cancelled.create_time == thing.create_time
        assert cancelled.update_time.ToNanoseconds() > thing.update_time.ToNanoseconds()
        assert provider.cancel(provider.id_of(thing)) == cancelled
        assert provider.get(provider.id_of(thing)) == cancelled


def test_a_thing_that_is_too_far_is_not_cancelled(provider: Provider) -> None:
    """The refusal says in which state it is, and it stays there."""
    for state in provider.reachable(*(set(provider.kind.life) - set(provider.kind.cancellable))):
        thing = provider.reach(state)
        refusal = refused(provider.cancel, provider.id_of(thing))
        assert refusal.why == provider.kind.why("NOT_CANCELLABLE")
        assert refusal.metadata == {"state": state}
        assert len(refusal.preconditions) == 1
        assert provider.get(provider.id_of(thing)) == thing


def test_the_feed_tells_every_change_in_order(provider: Provider) -> None:
    """Oldest first: each thing goes through its life once, each change as it was then, up to what it is now."""
    things = [provider.reach(state) for state in provider.reachable()]
    changes = [thing for _, thing in provider.changes_up_to(provider.new())]
    for thing in things:
        own = [change for change in changes if provider.id_of(change) == provider.id_of(thing)]
        states = [provider.kind.state(change) for change in own]
        assert states == [state for state in (*provider.kind.life, "CANCELLED") if state in states]
        assert states[0] == provider.kind.life[0]
        assert own[-1] == thing
        assert {change.create_time.ToNanoseconds() for change in own} == {own[0].update_time.ToNanoseconds()}
        times = [change.update_time.ToNanoseconds() for change in own]
        assert times == sorted(times)
    ids = [provider.id_of(thing) for thing in sorted(things, key=lambda thing: int(thing.create_time.ToNanoseconds()))]
    assert [thing_id for thing_id in dict.fromkeys(map(provider.id_of, changes)) if thing_id in ids] == ids


def test_the_feed_is_resumed_from_any_token(provider: Provider) -> None:
    """After the token of any change, the very changes follow that followed it before."""
    for state in provider.reachable() * 2:
        provider.reach(state)
    changes = provider.changes_up_to(provider.new())
    assert len({token for token, _ in changes}) == len(changes)
    last_ones = range(max(0, len(changes) - 12), len(changes))
    for position in {*last_ones, *Random(1).choices(range(len(changes)), k=8)}:
        token, rest = changes[position][0], [thing for _, thing in changes[position + 1 :]]
        with provider.feed(token) as feed:
            assert [thing for _, thing in islice(feed, len(rest))] == rest


def test_the_feed_waits_at_its_end(provider: Provider) -> None:
    """A reader that has read all gets what comes next on the same stream."""
    with provider.feed(provider.changes_up_to(provider.new())[-1][0]) as feed:
        for _ in range(3):
            thing_id = provider.new()
            thing = next(thing for _, thing in feed if provider.id_of(thing) == thing_id)
            assert provider.kind.state(thing) == provider.kind.life[0]


def test_a_token_of_nobody_is_refused(provider: Provider, request: pytest.FixtureRequest) -> None:
    """A token that was made up, damaged or given out by another service or database is BAD_RESUME_TOKEN."""
    token = provider.changes_up_to(provider.new())[-1][0]
    bad = {"0", "1", "gibberish", "пицца", token[1:], token[:-4], token + "A", token[::-1], token.swapcase()}
    for name in PROVIDERS:
        other: Provider = request.getfixturevalue(name)
        if other is not provider:
            bad.add(other.changes_up_to(other.new())[-1][0])
    for one in bad:
        with provider.feed(one) as feed:
            assert refused(next, feed).why == provider.kind.why("BAD_RESUME_TOKEN")


def test_the_kitchen_refuses_what_it_has_no_recipe_for(kitchen: Provider) -> None:
    """The refusal names the SKU and where it stands, and nothing is stored."""
    ticket_id = str(uuid4())
    items = [kitchen_pb.TicketItem(sku=sku, quantity=1) for sku in ("margherita", "unicorn")]
    request = kitchen_pb.SubmitTicketRequest(ticket_id=ticket_id, items=items)
    refusal = refused(KitchenServiceStub(kitchen.channel).SubmitTicket, request)
    assert refusal.why == ("kitchen.pizza", "NO_RECIPE")
    assert refusal.metadata == {"sku": "unicorn"}
    assert refusal.bad_fields == {"items[1].sku"}
    assert refused(kitchen.get, ticket_id).why == ("kitchen.pizza", "TICKET_NOT_FOUND")


@pytest.mark.parametrize(("sku", "state"), [("margherita", "READY"), ("diavola", "CANCELLED")])
def test_the_largest_ticket_of_the_contract_is_taken(kitchen: Provider, sku: str, state: str) -> None:
    """Fifty items of a hundred each are taken, and cancelled, within the timeouts of the contract; or made."""
    items = [kitchen_pb.TicketItem(sku=sku, quantity=100)] * 50
    ticket_id = kitchen.id_of(kitchen.again(kitchen_pb.Ticket(ticket_id=str(uuid4()), items=items)))
    if state == "CANCELLED":
        kitchen.cancel(ticket_id)
    eventually(lambda: kitchen.kind.state(kitchen.get(ticket_id)) == state)
