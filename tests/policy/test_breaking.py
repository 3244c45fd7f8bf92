"""`make breaking` sees each kind of change of a policy that breaks a caller, and no other."""

from collections.abc import Callable

import pytest
from buf.validate import validate_pb2
from google.protobuf import text_format
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
BOX = """
  name: "Box"
  field {
    name: "labels" number: 1 label: LABEL_REPEATED type: TYPE_STRING
    options { [buf.validate.field] { repeated { max_items: 5 items { string { max_len: 9 } } } } }
  }
  field {
    name: "lids" number: 2 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".pizza.kitchen.v1.Box.LidsEntry"
    options { [buf.validate.field] { map { keys { string { max_len: 9 } } values { int32 { gte: 1 } } } } }
  }
  nested_type {
    name: "LidsEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_INT32 }
  }
  nested_type {
    name: "Slot"
    nested_type {
      name: "Topping"
      field {
        name: "size" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING
        options { [buf.validate.field] { string { in: "small" in: "large" } } }
      }
      field { name: "sauce" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
    }
  }
"""
"""What the kitchen's contract does without: rules of messages inside messages, of lists, of maps, of allowed values."""


def revision(change: Change = lambda _: None) -> Revision:
    """The kitchen's contract and a box, with a change, in a revision of its own."""
    files: dict[str, FileDescriptorProto] = {}

    def collect(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            collect(dependency)
        files.setdefault(file.name, FileDescriptorProto.FromString(file.serialized_pb))

    collect(kitchen_service_pb2.DESCRIPTOR)
    kitchen = files[kitchen_service_pb2.DESCRIPTOR.name]
    text_format.Parse(BOX, kitchen.message_type.add())
    change(kitchen)
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


def box(file: FileDescriptorProto, name: str) -> validate_pb2.FieldRules:
    """The rules of a field of the box, or of the topping in a slot of it."""
    outer = message(file, "Box")
    fields = [*outer.field, *outer.nested_type[1].nested_type[0].field]
    return next(field for field in fields if field.name == name).options.Extensions[validate_pb2.field]


def sizes(*allowed: str) -> Change:
    def change(file: FileDescriptorProto) -> None:
        getattr(box(file, "size").string, "in")[:] = allowed

    return change


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
    "a rule of a message in a message is added": (
        lambda file: setattr(box(file, "sauce").string, "min_len", 1),
        "pizza.kitchen.v1.Box.Slot.Topping.sauce: min_len became stricter: no rule became 1",
    ),
    "a value is allowed no longer": (
        sizes("large", "huge"),
        "pizza.kitchen.v1.Box.Slot.Topping.size: in became stricter: ['small', 'large'] became ['large', 'huge']",
    ),
    "some values alone are allowed": (
        lambda file: getattr(box(file, "sauce").string, "in").append("pesto"),
        "pizza.kitchen.v1.Box.Slot.Topping.sauce: in became stricter: no rule became ['pesto']",
    ),
    "a rule of a list's items becomes stricter": (
        lambda file: setattr(box(file, "labels").repeated.items.string, "max_len", 8),
        "pizza.kitchen.v1.Box.labels: max_len became stricter: 9 became 8",
    ),
    "a rule of a list's items is added": (
        lambda file: setattr(box(file, "labels").repeated.items.string, "min_len", 1),
        "pizza.kitchen.v1.Box.labels: min_len became stricter: no rule became 1",
    ),
    "an expression for a list's items is added": (
        lambda file: box(file, "labels").repeated.items.cel.add(id="plain", expression="this != ''"),
        "pizza.kitchen.v1.Box.labels: a rule was added: 'plain'",
    ),
    "an expression for a field is added": (
        lambda file: box(file, "sauce").cel.add(expression="this != 'ketchup'"),
        """pizza.kitchen.v1.Box.Slot.Topping.sauce: a rule was added: "this != 'ketchup'\"""",
    ),
    "a list may be less long": (
        lambda file: setattr(box(file, "labels").repeated, "max_items", 4),
        "pizza.kitchen.v1.Box.labels: max_items became stricter: 5 became 4",
    ),
    "a rule of a map's keys becomes stricter": (
        lambda file: setattr(box(file, "lids").map.keys.string, "max_len", 8),
        "pizza.kitchen.v1.Box.lids: max_len became stricter: 9 became 8",
    ),
    "a rule of a map's values becomes stricter": (
        lambda file: setattr(box(file, "lids").map.values.int32, "gte", 2),
        "pizza.kitchen.v1.Box.lids: gte became stricter: 1 became 2",
    ),
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
    "a value more is allowed": sizes("small", "medium", "large"),
    "the order of what is allowed changes": sizes("large", "small"),
    "any value is allowed": lambda file: box(file, "size").Clear(),
    "a rule of a list's items is relaxed": (
        lambda file: setattr(box(file, "labels").repeated.items.string, "max_len", 10)
    ),
    "a rule of a map's values is taken away": lambda file: box(file, "lids").map.ClearField("values"),
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
