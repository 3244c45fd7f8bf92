"""Requests made from the contract's messages and the rules beside their fields: some keep them, some break them."""

from typing import Any, TypeVar
from uuid import uuid4

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.contract.contract import faulty_fields, rules_of

M = TypeVar("M", bound=Message)

EXAMPLES = settings(
    max_examples=25,
    deadline=None,  # a call takes as long as the machine is busy
    print_blob=True,  # a failure says how it is made again
    suppress_health_check=list(HealthCheck),  # the machine may be slow, and a service serves many examples
)

# What means something to the services, so that not all requests name things that are not there.
_KNOWN = {"sku": ["margherita", "marinara", "diavola"], "uuid": [str(uuid4()) for _ in range(3)]}
_MANY = 4  # a list's length, unless a rule asks for more
_INT32 = (-(2**31), 2**31 - 1)


def valid(kind: type[M]) -> st.SearchStrategy[M]:
    """Requests that keep every rule."""
    return _messages(kind, st.just(False)).filter(lambda request: not faulty_fields(request))


def invalid(kind: type[M]) -> st.SearchStrategy[M]:
    """Requests that break one or more rules, though not so many that a refusal could not name each."""
    return _messages(kind, st.booleans()).filter(lambda request: 1 <= len(faulty_fields(request)) <= 10)


def damaged(kind: type[Message]) -> st.SearchStrategy[bytes]:
    """Valid requests with a few bytes put in, or the end cut off, somewhere."""

    def damage(request: Message, at: float, noise: bytes) -> bytes:
        data = request.SerializeToString()
        position = int(at * len(data))
        return data[:position] + noise + data[position:] if noise else data[:position]

    return st.builds(damage, valid(kind), st.floats(0, 1), st.binary(max_size=4))


def _messages(kind: type[M], breaks: st.SearchStrategy[bool]) -> st.SearchStrategy[M]:
    """Messages whose fields each break a rule where `breaks` says so."""

    @st.composite
    def draw_message(draw: st.DrawFn) -> M:
        values = {field.name: _draw(draw, field, breaks) for field in kind.DESCRIPTOR.fields}
        return kind(**{name: value for name, value in values.items() if value is not None})

    return draw_message()


def _draw(draw: st.DrawFn, field: Any, breaks: st.SearchStrategy[bool]) -> Any:
    rules = rules_of(field)
    broken = draw(breaks)
    if field.is_repeated:
        fewest, most = rules.repeated.min_items, rules.repeated.max_items
        size = draw(st.sampled_from([0, most + 1]) if broken else st.integers(fewest, max(fewest, _MANY)))
        if size > _MANY:  # one element many times: drawing each would take long
            return [draw(_one(field, breaks))] * size
        return [draw(_one(field, breaks)) for _ in range(size)]
    if field.type == FieldDescriptor.TYPE_MESSAGE and broken:
        return None
    return draw(_one(field, breaks))


def _one(field: Any, breaks: st.SearchStrategy[bool]) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _messages(message_factory.GetMessageClass(field.message_type), breaks)
    rules = rules_of(field)
    keeping, breaking = (_string if field.type == FieldDescriptor.TYPE_STRING else _int32)(field.name, rules)
    return breaks.flatmap(lambda broken: breaking if broken else keeping)


def _string(name: str, rules: Any) -> tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]:
    rule = rules.string
    text = st.text(st.characters(codec="utf-8"), min_size=rule.min_len, max_size=rule.max_len or 100)
    breaking = st.sampled_from(["", "x" * (rule.max_len + 1), "ü" * (rule.max_len + 1)]) | st.text(max_size=40)
    if rule.uuid:
        return st.sampled_from(_KNOWN["uuid"]) | st.uuids().map(str), breaking
    if rule.pattern:
        matching = st.from_regex(rule.pattern, fullmatch=True).filter(lambda value: len(value) <= rule.max_len)
        return st.sampled_from(_KNOWN[name]) | matching, breaking
    return text, breaking


def _int32(_: str, rules: Any) -> tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]:
    rule = rules.int32
    low = rule.gte if rule.HasField("gte") else _INT32[0]
    high = rule.lte if rule.HasField("lte") else _INT32[1]
    outside = [value for value in (low - 1, high + 1) if _INT32[0] <= value <= _INT32[1]]
    return st.integers(low, high) | st.sampled_from([low, high]), st.sampled_from(outside)
