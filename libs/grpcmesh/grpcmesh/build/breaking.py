"""What `buf breaking` does not see: changes of a contract's policy and rules that break its callers.

`python3 -m grpcmesh.build.breaking BASE HEAD`, two file descriptor sets (`buf build --as-file-descriptor-set`), prints
a line for each break with its old and new value, and exits with 1 where there is one.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from buf.validate import validate_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodOptions
from google.protobuf.message import Message
from google.rpc import code_pb2
from mesh.v1 import policy_pb2

from grpcmesh.contract import ANYONE, ContractError, read_method

# Rules by how they become stricter: by a larger value, by a smaller one, by fewer values; any other by any change.
_LOWER_BOUNDS = ("min_", "gt", "gte")
_UPPER_BOUNDS = ("max_", "lt", "lte")
_ALLOWED = ("in",)


class Revision:
    """The contract as it is in one revision, from its file descriptor set."""

    def __init__(self, files: FileDescriptorSet) -> None:
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)
        descriptors = [pool.FindFileByName(file.name) for file in files.file if _ours(file.package)]
        services = [service for file in descriptors for service in file.services_by_name.values()]
        self.methods = {method.full_name: method for service in services for method in service.methods}
        self.reasons = {
            f"{enum.full_name}.{value.name}": value.GetOptions().Extensions[policy_pb2.code]
            for file in descriptors
            for enum in file.enum_types_by_name.values()
            for value in enum.values
        }
        self.messages = {
            message.full_name: message
            for file in descriptors
            for outer in file.message_types_by_name.values()
            for message in _with_nested(outer)
        }


def breaks(base: Revision, head: Revision) -> Iterator[str]:
    """Yields each change from `base` to `head` that breaks a caller, in a line."""
    for name, before in base.methods.items():
        if name in head.methods:
            yield from _method_breaks(name, before, head.methods[name])
    for name, code in base.reasons.items():
        if name not in head.reasons:
            yield f"{name}: the reason is gone"
        elif head.reasons[name] != code:
            yield f"{name}: status code {_code(code)} became {_code(head.reasons[name])}"
    for name, message in base.messages.items():
        if name in head.messages:
            yield from _message_breaks(message, head.messages[name])


def _method_breaks(name: str, before: Any, after: Any) -> Iterator[str]:
    try:
        old, new = read_method(before), read_method(after)
    except ContractError as error:
        yield f"{name}: {error}"
        return
    if ANYONE not in new.callers:
        for caller in sorted(old.callers - new.callers):
            yield f"{name}: caller {caller!r} was taken away: {_names(old.callers)} became {_names(new.callers)}"
    if new.timeout_seconds < old.timeout_seconds:
        yield f"{name}: timeout was shortened: {old.timeout_seconds:g} s became {new.timeout_seconds:g} s"
    levels = [method.GetOptions().idempotency_level for method in (before, after)]
    # NO_SIDE_EFFECTS promises all that IDEMPOTENT does, and more.
    strength = [(0, 2, 1)[level] for level in levels]
    if strength[1] < strength[0]:
        was, now = (MethodOptions.IdempotencyLevel.Name(level) for level in levels)
        yield f"{name}: idempotency was dropped: {was} became {now}"


def _message_breaks(before: Descriptor, after: Descriptor) -> Iterator[str]:
    yield from _cel_breaks(before.full_name, _rules(before).cel, _rules(after).cel)
    for name, field in before.fields_by_name.items():
        if name in after.fields_by_name:
            yield from _stricter(field.full_name, _rules(field), _rules(after.fields_by_name[name]))


def _cel_breaks(name: str, old: Iterable[Any], new: Iterable[Any]) -> Iterator[str]:
    known = {rule.expression for rule in old}
    for rule in new:
        if rule.expression not in known:
            yield f"{name}: a rule was added: {rule.id or rule.expression!r}"


def _stricter(name: str, old: Any, new: Message) -> Iterator[str]:
    """Rules of a field that refuse what they took before; nested ones (repeated.items.cel) are compared in turn."""
    were = {rule.name: value for rule, value in old.ListFields()}
    for rule, value in new.ListFields():
        before = were.get(rule.name)
        if value == before:
            continue
        if rule.name == "cel":
            yield from _cel_breaks(name, old.cel, value)
        elif isinstance(value, Message) and value.DESCRIPTOR.file.package == "buf.validate":
            yield from _stricter(name, getattr(old, rule.name), value)
        elif before is None or _tightened(rule.name, before, value):
            yield f"{name}: {rule.name} became stricter: {'no rule' if before is None else before} became {value}"


def _tightened(rule: str, before: Any, value: Any) -> bool:
    if rule in _ALLOWED:
        return any(entry not in value for entry in before)
    if rule.startswith(_LOWER_BOUNDS) and not isinstance(value, Message):
        return bool(value > before)
    if rule.startswith(_UPPER_BOUNDS) and not isinstance(value, Message):
        return bool(value < before)
    return True


def _rules(element: Descriptor | FieldDescriptor) -> Any:
    if isinstance(element, Descriptor):
        return element.GetOptions().Extensions[validate_pb2.message]
    return element.GetOptions().Extensions[validate_pb2.field]


def _with_nested(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for nested in message.nested_types:
        yield from _with_nested(nested)


def _ours(package: str) -> bool:
    return not package.startswith(("google.", "buf."))


def _names(callers: frozenset[str]) -> str:
    return ", ".join(sorted(callers)) or "nobody"


def _code(code: int) -> str:
    return str(code_pb2.Code.Name(code))


def main() -> int:
    """Prints what breaks, and returns the exit status."""
    base, head = (Revision(FileDescriptorSet.FromString(Path(name).read_bytes())) for name in sys.argv[1:])
    found = list(breaks(base, head))
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
