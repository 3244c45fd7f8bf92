"""Who may call what: each method, called by everyone. What was answered is the table in docs/callers.md."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message import Message
from grpc_status import rpc_status
from grpcmesh.authority import Authority

from tests.contract.contract import (
    ANYONE,
    SERVICES,
    Method,
    call,
    domain_of,
    faulty_fields,
    methods,
    reasons,
    refusal_of,
    refuse,
    refused,
)
from tests.contract.launch import Running, connect, running
from tests.contract.providers import KINDS, Kind, Provider

PAGE = Path(__file__).parents[2] / "docs" / "callers.md"
FOREIGN_AUTHORITY = Authority()
FOREIGN, NOBODY, PLAIN_TEXT = "a foreign CA's", "no certificate", "plain text"
CALLERS = (*SERVICES, FOREIGN, NOBODY, PLAIN_TEXT)
ADMITTED = "admitted"
UNKNOWN = "UNAUTHENTICATED, CALLER_UNKNOWN"
NOT_ALLOWED = "PERMISSION_DENIED, CALLER_NOT_ALLOWED"
NO_CONNECTION = "no connection"
ADMITTED_WITH = {
    "ListMenuItems": None,
    "PlaceOrder": None,
    "GetOrder": "ORDER_NOT_FOUND",
    "ListOrders": "BAD_PAGE_TOKEN",
    "CancelOrder": "ORDER_NOT_FOUND",
    "WatchOrder": "ORDER_NOT_FOUND",
    "SubmitTicket": None,
    "GetTicket": "TICKET_NOT_FOUND",
    "CancelTicket": "TICKET_NOT_FOUND",
    "WatchTickets": "BAD_RESUME_TOKEN",
    "ScheduleDelivery": None,
    "GetDelivery": "DELIVERY_NOT_FOUND",
    "CancelDelivery": "DELIVERY_NOT_FOUND",
    "WatchDeliveries": "BAD_RESUME_TOKEN",
}
"""What comes of the example of each method once its caller is admitted: a response, or its service's own reason.

Nothing else counts: a service that fails, or is not there, has admitted nobody.
"""
BUSY = {"DEADLINE_EXCEEDED, TIMEOUT", "UNAVAILABLE, STORE_UNAVAILABLE"}
"""What a slow machine may say at first; it is asked again."""
_TRIES = 5
HEAD = f"""\
<!-- Written by tests/contract/test_callers.py: UPDATE_DOCS=1 pytest tests/contract/test_callers.py -->
# Who may call what

What each method was answered, by the certificate that its caller showed. The one of a foreign CA names a caller that
the contract allows. In {PLAIN_TEXT} nobody can show one; kitchen and delivery speak it only where they were given no
certificates. `{NO_CONNECTION}`: the TLS handshake fails, which the caller sees as UNAVAILABLE and the service not at
all.

"""
VALUES = {
    "customer_id": "ada",
    "lines": [{"sku": "margherita", "quantity": 1}],
    "items": [{"sku": "margherita", "quantity": 1}],
    "address": {"street": "Piotrkowska 1", "city": "Łódź"},
    "page_token": "none of its own",
    "resume_token": "none of its own",  # so that a feed with nothing to tell has an answer as well
}

Answers = Mapping[tuple[Method, str], str]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[tuple[str, bool], Running]]:
    """Each service twice, by name and whether its port speaks TLS."""
    with ExitStack() as end:
        yield {
            (service, tls): end.enter_context(running(service, tmp_path_factory.mktemp(service), tls))
            for service in SERVICES
            for tls in (True, False)
        }


@pytest.fixture(scope="module")
def responses(services: Mapping[tuple[str, bool], Running]) -> Answers:
    """What everyone is answered by every method."""
    return {
        (method, caller): answer_of(services[method.service, caller != PLAIN_TEXT], method, caller, example(method))
        for method in methods()
        for caller in CALLERS
    }


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("method", methods(), ids=str)
def test_a_method_is_for_its_callers(method: Method, caller: str, responses: Answers) -> None:
    """A method admits the callers that its contract names and no others, and no one without a certificate of our CA."""
    assert responses[method, caller] == expected(method, caller)


def test_the_docs_show_what_was_answered(responses: Answers) -> None:
    """The page in docs/ holds the answers that were observed."""
    page = HEAD + table(responses)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page)
    assert PAGE.read_text() == page, f"{PAGE.name} is out of date: run UPDATE_DOCS=1 pytest {Path(__file__).name}"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_who_is_not_admitted_does_nothing(kind: Kind, services: Mapping[tuple[str, bool], Running]) -> None:
    """A submission of someone who may not submit leaves nothing behind."""
    (submit,) = (method for method in methods() if str(method) == kind.submit)
    service = services[kind.service, True]
    others = [caller for caller in CALLERS if caller != PLAIN_TEXT and expected(submit, caller) != ADMITTED]
    assert others
    for caller in others:
        request = example(submit)
        assert answer_of(service, submit, caller, request) == expected(submit, caller)
        thing_id = getattr(request, kind.id)
        assert refused(Provider(kind, service.channel).get, thing_id).why == kind.why("{}_NOT_FOUND")


@pytest.mark.no_store
@pytest.mark.parametrize(
    "failure",
    [
        "INTERNAL, INTERNAL",
        "UNAVAILABLE, STORE_UNAVAILABLE",
        "UNAVAILABLE, DRAINING",
        "DEADLINE_EXCEEDED, TIMEOUT",
        "ALREADY_EXISTS, TICKET_ID_TAKEN",
        "INTERNAL, no reason",
        "NOT_FOUND, no reason",
    ],
)
def test_a_service_that_fails_has_admitted_nobody(failure: str) -> None:
    """What GetTicket has no reason to answer is shown as it is, and is not taken for admission."""
    code, reason = failure.split(", ")
    whys = {reason: (domain, reason) for domain, reason in reasons()}

    def fail(_: bytes, context: grpc.ServicerContext) -> NoReturn:
        if reason in whys:
            refuse(context, whys[reason])
        context.abort(grpc.StatusCode[code], "")

    (method,) = (method for method in methods() if str(method) == "GetTicket")
    _, service, name = method.path.split("/")
    handler = grpc.method_handlers_generic_handler(service, {name: grpc.unary_unary_rpc_method_handler(fail)})
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert answer_in_words(channel, method, "order", example(method)) == failure
    server.stop(None)


def expected(method: Method, caller: str) -> str:
    """What the contract says."""
    if ANYONE in method.callers or caller in method.callers:
        return ADMITTED
    return {FOREIGN: NO_CONNECTION, NOBODY: NO_CONNECTION, PLAIN_TEXT: UNKNOWN}.get(caller, NOT_ALLOWED)


def answer_of(service: Running, method: Method, caller: str, request: Message) -> str:
    """What a caller is answered."""
    with channel_to(service, caller, method) as channel:
        for _ in range(_TRIES):
            response = answer_in_words(channel, method, caller, request)
            if response not in BUSY:
                break
    return response


def answer_in_words(channel: grpc.Channel, method: Method, caller: str, request: Message) -> str:
    """ADMITTED, NO_CONNECTION, or the status and reason of a refusal, or what else came."""
    try:
        call(channel, method, request.SerializeToString())
    except grpc.RpcError as error:
        return refusal_in_words(error, method, caller)
    return ADMITTED if ADMITTED_WITH[str(method)] is None else "a response"


def refusal_in_words(error: grpc.RpcError, method: Method, caller: str) -> str:
    assert isinstance(error, grpc.Call)
    if rpc_status.from_call(error) is None:
        return NO_CONNECTION if error.code() is grpc.StatusCode.UNAVAILABLE else f"{error.code().name}, no reason"
    refusal = refusal_of(error)
    if refusal.why == (domain_of(method.service), ADMITTED_WITH[str(method)]):
        return ADMITTED
    assert refusal.metadata == ({"caller": caller} if refusal.reason == "CALLER_NOT_ALLOWED" else {})
    return f"{reasons()[refusal.why].name}, {refusal.reason}"


def channel_to(service: Running, caller: str, method: Method) -> grpc.Channel:
    if caller == PLAIN_TEXT:
        return connect(service.address)
    if caller == NOBODY:
        return connect(service.address, service.service)
    if caller == FOREIGN:
        allowed = next(iter(method.callers - {ANYONE}), "order")
        return connect(service.address, service.service, allowed, FOREIGN_AUTHORITY)
    return connect(service.address, service.service, caller)


def example(method: Method) -> Message:
    """A valid request that names things of its own."""
    values = {field.name: VALUES.get(field.name, str(uuid4())) for field in method.request.DESCRIPTOR.fields}
    request = method.request(**{name: value for name, value in values.items() if name != "page_size"})
    assert not faulty_fields(request)
    return request


def table(responses: Answers) -> str:
    rows = [["method", "for", *CALLERS], ["---"] * (len(CALLERS) + 2)]
    for method in methods():
        allowed = ", ".join(sorted(method.callers)).replace(ANYONE, "anyone")
        rows.append([f"`{method}`", allowed, *(responses[method, caller] for caller in CALLERS)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
