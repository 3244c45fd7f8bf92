"""`make breaking` sees each kind of change of a policy that breaks a caller, and no other."""

from collections.abc import Callable

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
)
from grpcmesh.build.breaking import Revision, breaks
from mesh.v1 import policy_pb2
from pizza.kitchen.v1 import kitchen_service_pb2

Change = Callable[[FileDescriptorProto], object]


def revision(change: Change = lambda _: None) -> Revision:
    """The kitchen's contract with a change, in a revision of its own."""
    files: dict[str, FileDescriptorProto] = {}

    def collect(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            collect(dependency)
        files.setdefault(file.name, FileDescriptorProto.FromString(file.serialized_pb))

    collect(kitchen_service_pb2.DESCRIPTOR)
    change(files[kitchen_service_pb2.DESCRIPTOR.name])
    return Revision(FileDescriptorSet(file=files.values()))


def method(file: FileDescriptorProto, name: str) -> MethodDescriptorProto:
    return next(method for method in file.service[0].method if method.name == name)


def policy(file: FileDescriptorProto, name: str) -> policy_pb2.MethodPolicy:
    return method(file, name).options.Extensions[policy_pb2.policy]


def message(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(message for message in file.message_type if message.name == name)


def field(file: FileDescriptorProto, owner: str, name: str) -> FieldDescriptorProto:
    return next(field for field in message(file, owner).field if field.name == name)


def rules(file: FileDescriptorProto, owner: str, name: str) -> validate_pb2.FieldRules:
    return field(file, owner, name).options.Extensions[validate_pb2.field]


def idempotency(level: MethodOptions.IdempotencyLevel.ValueType, attempts: int) -> Change:
    def change(file: FileDescriptorProto) -> None:
        method(file, "SubmitTicket").options.idempotency_level = level
        policy(file, "SubmitTicket").max_attempts = attempts

    return change


def set_rule(owner: str, name: str, kind: str, rule: str, value: object) -> Change:
    return lambda file: setattr(getattr(rules(file, owner, name), kind), rule, value)


def add_cel(file: FileDescriptorProto) -> None:
    rule = message(file, "SubmitTicketRequest").options.Extensions[validate_pb2.message].cel.add()
    rule.id, rule.expression = "few", "this.items.size() < 3"


BREAKING: dict[str, tuple[Change, str]] = {
    "a caller is taken away": (
        lambda file: policy(file, "GetTicket").callers.remove("order"),
        "pizza.kitchen.v1.KitchenService.GetTicket: caller 'order' was taken away: order became nobody",
    ),
    "a timeout is shortened": (
        lambda file: setattr(policy(file, "WatchTickets").timeout, "seconds", 30),
        "pizza.kitchen.v1.KitchenService.WatchTickets: timeout was shortened: 300 s became 30 s",
    ),
    "idempotency is dropped": (
        idempotency(MethodOptions.IDEMPOTENCY_UNKNOWN, 1),
        "pizza.kitchen.v1.KitchenService.SubmitTicket: idempotency was dropped: IDEMPOTENT became IDEMPOTENCY_UNKNOWN",
    ),
    "a reason is removed": (
        lambda file: file.enum_type[1].value.pop(),
        "pizza.kitchen.v1.ErrorReason.ERROR_REASON_BAD_RESUME_TOKEN: the reason is gone",
    ),
    "a reason's status changes": (
        lambda file: file.enum_type[1].value[1].options.Extensions.__setitem__(policy_pb2.code, 9),
        "pizza.kitchen.v1.ErrorReason.ERROR_REASON_TICKET_NOT_FOUND: status code NOT_FOUND became FAILED_PRECONDITION",
    ),
    "a lower bound rises": (
        set_rule("TicketItem", "quantity", "int32", "gte", 2),
        "pizza.kitchen.v1.TicketItem.quantity: gte became stricter: 1 became 2",
    ),
    "an upper bound falls": (
        set_rule("TicketItem", "sku", "string", "max_len", 8),
        "pizza.kitchen.v1.TicketItem.sku: max_len became stricter: 64 became 8",
    ),
    "a pattern changes": (
        set_rule("TicketItem", "sku", "string", "pattern", "^[a-z]+$"),
        "pizza.kitchen.v1.TicketItem.sku: pattern became stricter: ^[a-z][a-z0-9-]*$ became ^[a-z]+$",
    ),
    "a field becomes required": (
        lambda file: setattr(rules(file, "WatchTicketsRequest", "resume_token"), "required", True),
        "pizza.kitchen.v1.WatchTicketsRequest.resume_token: required became stricter: no rule became True",
    ),
    "a rule is added": (
        set_rule("WatchTicketsRequest", "resume_token", "string", "min_len", 1),
        "pizza.kitchen.v1.WatchTicketsRequest.resume_token: min_len became stricter: no rule became 1",
    ),
    "a rule of a message is added": (add_cel, "pizza.kitchen.v1.SubmitTicketRequest: a rule was added: 'few'"),
}
HARMLESS: dict[str, Change] = {
    "nothing": lambda _: None,
    "a caller is added": lambda file: policy(file, "GetTicket").callers.append("delivery"),
    "anyone may call": lambda file: policy(file, "GetTicket").callers.__setitem__(0, "*"),
    "a timeout is lengthened": lambda file: setattr(policy(file, "GetTicket").timeout, "seconds", 10),
    "idempotency is strengthened": idempotency(MethodOptions.NO_SIDE_EFFECTS, 3),
    "a lower bound falls": set_rule("TicketItem", "quantity", "int32", "gte", 0),
    "an upper bound rises": set_rule("TicketItem", "sku", "string", "max_len", 128),
    "a rule is taken away": lambda file: rules(file, "TicketItem", "sku").string.ClearField("pattern"),
}


@pytest.mark.parametrize("kind", BREAKING)
def test_a_breaking_change_is_told_with_old_and_new(kind: str) -> None:
    """Each kind of breaking change gives one line, which names the element and both values."""
    change, line = BREAKING[kind]
    assert list(breaks(revision(), revision(change))) == [line]


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_harmless_change_passes(kind: str) -> None:
    """A change that no caller can suffer from gives no line."""
    assert list(breaks(revision(), revision(HARMLESS[kind]))) == []
