"""The contract as gRPC's own service config, for channels here and for clients in other languages.

Left out: `timeout` (C-core fires it 1 to 2 s early, grpc issue 34547; deadlines are set on each call) and hedging
(C-core ignores it).
"""

from collections.abc import Iterable
from typing import Any

from grpcmesh.contract import Method

_MAX_ATTEMPTS = 5  # gRPC takes no more (gRFC A6)
_OUTLIERS = {  # A replica that fails most of its calls is left alone for some seconds (gRFC A50).
    "interval": "2s",
    "baseEjectionTime": "5s",
    "failurePercentageEjection": {"threshold": 80, "minimumHosts": 2, "requestVolume": 20},
    "childPolicy": [{"round_robin": {}}],
}


def service_config(methods: Iterable[Method]) -> dict[str, Any]:
    """Returns the service config of these methods' channel, in the JSON form of grpc.service_config.ServiceConfig."""
    methods = list(methods)
    services = sorted({method.path.split("/")[1] for method in methods})
    return {
        "loadBalancingConfig": [{"outlier_detection_experimental": _OUTLIERS}],
        "healthCheckConfig": {"serviceName": services[0] if len(services) == 1 else ""},
        # A server that fails half of its calls gets no retries on top (gRFC A6).
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
        "methodConfig": [_method_config(method) for method in methods if method.max_attempts > 1],
    }


def _method_config(method: Method) -> dict[str, Any]:
    service, name = method.path.removeprefix("/").split("/")
    return {
        "name": [{"service": service, "method": name}],
        "retryPolicy": {
            "maxAttempts": min(method.max_attempts, _MAX_ATTEMPTS),
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],  # AIP-194: the one code that says nothing of the request
        },
    }
