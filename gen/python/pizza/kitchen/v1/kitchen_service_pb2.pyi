import datetime

from buf.validate import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from mesh.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TicketState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TICKET_STATE_UNSPECIFIED: _ClassVar[TicketState]
    TICKET_STATE_QUEUED: _ClassVar[TicketState]
    TICKET_STATE_COOKING: _ClassVar[TicketState]
    TICKET_STATE_READY: _ClassVar[TicketState]
    TICKET_STATE_CANCELLED: _ClassVar[TicketState]

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_TICKET_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_NO_RECIPE: _ClassVar[ErrorReason]
    ERROR_REASON_TICKET_ID_TAKEN: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_CANCELLABLE: _ClassVar[ErrorReason]
    ERROR_REASON_BAD_RESUME_TOKEN: _ClassVar[ErrorReason]
TICKET_STATE_UNSPECIFIED: TicketState
TICKET_STATE_QUEUED: TicketState
TICKET_STATE_COOKING: TicketState
TICKET_STATE_READY: TicketState
TICKET_STATE_CANCELLED: TicketState
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_TICKET_NOT_FOUND: ErrorReason
ERROR_REASON_NO_RECIPE: ErrorReason
ERROR_REASON_TICKET_ID_TAKEN: ErrorReason
ERROR_REASON_NOT_CANCELLABLE: ErrorReason
ERROR_REASON_BAD_RESUME_TOKEN: ErrorReason

class Ticket(_message.Message):
    __slots__ = ("ticket_id", "items", "state", "create_time", "update_time")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    items: _containers.RepeatedCompositeFieldContainer[TicketItem]
    state: TicketState
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, ticket_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[TicketItem, _Mapping]]] = ..., state: _Optional[_Union[TicketState, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TicketItem(_message.Message):
    __slots__ = ("sku", "quantity")
    SKU_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    sku: str
    quantity: int
    def __init__(self, sku: _Optional[str] = ..., quantity: _Optional[int] = ...) -> None: ...

class SubmitTicketRequest(_message.Message):
    __slots__ = ("ticket_id", "items")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    items: _containers.RepeatedCompositeFieldContainer[TicketItem]
    def __init__(self, ticket_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[TicketItem, _Mapping]]] = ...) -> None: ...

class SubmitTicketResponse(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ...) -> None: ...

class GetTicketRequest(_message.Message):
    __slots__ = ("ticket_id",)
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    def __init__(self, ticket_id: _Optional[str] = ...) -> None: ...

class GetTicketResponse(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ...) -> None: ...

class CancelTicketRequest(_message.Message):
    __slots__ = ("ticket_id",)
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    def __init__(self, ticket_id: _Optional[str] = ...) -> None: ...

class CancelTicketResponse(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ...) -> None: ...

class WatchTicketsRequest(_message.Message):
    __slots__ = ("resume_token",)
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    def __init__(self, resume_token: _Optional[str] = ...) -> None: ...

class WatchTicketsResponse(_message.Message):
    __slots__ = ("ticket", "resume_token")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    resume_token: str
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., resume_token: _Optional[str] = ...) -> None: ...
