"""Every method takes what its contract allows, and refuses everything else as its contract says."""

import grpc
import pytest
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.contract import Method, Refusal, domain_of, faulty_fields, first_answer, methods, reasons
from tests.contract.launch import Running
from tests.contract.providers import Provider
from tests.contract.strategies import EXAMPLES, damaged, invalid, valid

HOSTS = {"order": "held_order", "kitchen": "kitchen", "delivery": "quick_delivery"}
WITH_RULES = [method for method in methods() if method.request.DESCRIPTOR.fields]
WITH_LISTS = [method for method in methods() if any(field.is_repeated for field in method.request.DESCRIPTOR.fields)]


@pytest.fixture
def channel(method: Method, request: pytest.FixtureRequest) -> grpc.Channel:
    """A channel to the method's service, whose feed has something to tell."""
    host: Provider | Running = request.getfixturevalue(HOSTS[method.service])
    if isinstance(host, Provider):
        host.new()
    return host.channel


@pytest.mark.parametrize("method", methods(), ids=str)
@EXAMPLES
@given(data=st.data())
def test_a_valid_request_is_taken(method: Method, channel: grpc.Channel, data: st.DataObject) -> None:
    """A request that keeps every rule is answered, or refused for a reason of the service's own."""
    response = first_answer(channel, method, data.draw(valid(method.request)).SerializeToString())
    if isinstance(response, Refusal):
        assert response.domain == domain_of(method.service)


@pytest.mark.no_store
@pytest.mark.parametrize("method", WITH_RULES, ids=str)
@EXAMPLES
@given(data=st.data())
def test_an_invalid_request_is_refused(method: Method, channel: grpc.Channel, data: st.DataObject) -> None:
    """A request that breaks rules is INVALID_REQUEST, and the refusal names the faulty fields and no others."""
    request = data.draw(invalid(method.request))
    response = first_answer(channel, method, request.SerializeToString())
    assert isinstance(response, Refusal)
    assert response.why == ("mesh", "INVALID_REQUEST")
    assert response.bad_fields == faulty_fields(request)


@pytest.mark.no_store
@pytest.mark.parametrize("method", WITH_LISTS, ids=str)
def test_a_request_that_is_all_wrong_is_refused(method: Method, channel: grpc.Channel) -> None:
    """However many rules a request breaks, the refusal reaches its caller, and names some of the faulty fields."""
    (field,) = (field for field in method.request.DESCRIPTOR.fields if field.is_repeated)
    request = method.request()
    for _ in range(200):
        getattr(request, field.name).add()
    response = first_answer(channel, method, request.SerializeToString())
    assert isinstance(response, Refusal)
    assert response.why == ("mesh", "INVALID_REQUEST")
    assert response.bad_fields
    assert response.bad_fields <= faulty_fields(request)


@pytest.mark.no_store
@pytest.mark.parametrize("method", methods(), ids=str)
@EXAMPLES
@given(data=st.data())
def test_no_bytes_are_the_servers_fault(method: Method, channel: grpc.Channel, data: st.DataObject) -> None:
    """Whatever bytes come, the answer is a message, or a refusal that blames the caller."""
    response = first_answer(channel, method, data.draw(st.binary(max_size=100) | damaged(method.request)))
    if isinstance(response, Refusal):
        assert reasons()[response.why] not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


@pytest.mark.no_store
@pytest.mark.parametrize("method", WITH_RULES, ids=str)
def test_what_is_no_message_is_an_invalid_request(method: Method, channel: grpc.Channel) -> None:
    """Bytes that are cut off, or text that is not UTF-8, are INVALID_REQUEST too."""
    for data in (b"\x0a\x24cut off", b"\x0a\x02\xff\xfe", b"\xff\xff\xff\xff"):
        response = first_answer(channel, method, data)
        assert isinstance(response, Refusal)
        assert response.why == ("mesh", "INVALID_REQUEST")


@pytest.mark.no_store
@pytest.mark.parametrize("method", methods(), ids=str)
def test_there_are_no_other_methods(method: Method, channel: grpc.Channel) -> None:
    """A method that the contract does not have is UNIMPLEMENTED."""
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"{method.path}s", bytes, bytes)(b"")
    assert isinstance(refused.value, grpc.Call)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert rpc_status.from_call(refused.value) is None, "gRPC itself says so, and gives no reason"
