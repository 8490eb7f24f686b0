"""A real gRPC service and its client: `python -m tests.e2e.grpc_peer TARGET TEXT`.

Two methods without generated code: `Who` (unary) answers the instance's name and the text; `Count` (server
stream) answers that many messages. The client prints one JSON object: {"who", "count", "trailer"} or
{"code", "details"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

SERVICE = "e2e.Peer"
DEADLINE_S = 5.0


def serve(address: str, port: int, name: str) -> None:
    """Serve until ended."""

    def who(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("x-instance", name),))
        return f"{name} {request.decode()}".encode()

    def count(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(f"{address}:{port}")
    server.start()
    server.wait_for_termination()


def call(target: str, text: str) -> dict[str, str | int]:
    """What the service said, or the error it gave."""
    with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Who")
            count: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"/{SERVICE}/Count")
            who, done = ask.with_call(text.encode(), timeout=DEADLINE_S)
            counted = list(count(b"100", timeout=DEADLINE_S))
        except grpc.RpcError as exc:
            return {"code": exc.code().name, "details": exc.details() or ""}
        trailers = dict(done.trailing_metadata())
        return {"who": who.decode(), "count": len(counted), "trailer": str(trailers.get("x-instance", ""))}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(call(*sys.argv[1:])))
