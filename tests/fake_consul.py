"""A small Consul agent for tests: the endpoints a sidecar uses, with blocking queries, and faults on demand.

Held against the real one by tests/integration/test_consul_contract.py. Differences that are meant: certificates are
texts without meaning, and there is one node.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.consul_http import ConsulHttp

TRUST_DOMAIN = "0f0f0f0f-1111-2222-3333-444444444444.consul"
DATACENTER = "dc1"


@dataclass(frozen=True)
class Fault:
    """What to do instead of, or to, one answer.

    Args:
        kind: `status`, `close`, `delay`, `truncate`, `garbage`, `headers`, or `body`.
        code, text: for `status`.
        seconds: for `delay`.
        headers: replaced or added, for `status` and `headers`.
        body: JSON instead of the true one, for `body`.
    """

    kind: str
    code: int = 500
    text: str = "No cluster leader"
    seconds: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    body: Any = None


@dataclass
class _Answer:
    code: int
    body: Any
    headers: dict[str, str]


class FakeConsul(ConsulHttp):
    """The agent; a context manager. All state is made over HTTP, as with the real one, or with the methods here."""

    def __init__(self, default_policy: str = "allow") -> None:
        self._changed = threading.Condition()
        self._index = 10
        self._topics: dict[str, int] = {}
        self._services: dict[str, dict[str, Any]] = {}
        self._checks: dict[str, dict[str, Any]] = {}
        self._intentions: dict[tuple[str, str], dict[str, Any]] = {}
        self._queries: dict[str, dict[str, Any]] = {}
        self._protocols: dict[str, str] = {}
        self._mesh: list[dict[str, Any]] = []
        self._leaf_serials: dict[str, int] = {}
        self._roots = 1
        self._faults: list[tuple[str, Fault]] = []
        self._closing = False
        self.default_policy = default_policy
        self.match_blocks = True
        self.may_list_intentions = True
        self.may_read_services = True
        self.token = ""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._server = _Server(self)
        super().__init__(f"127.0.0.1:{self._server.server_address[1]}")

    def __enter__(self) -> Self:
        self._server.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and end every connection."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.end()

    # What no HTTP call of the real agent does so easily.

    def fail(self, path_part: str, fault: Fault, times: int = 1) -> None:
        """The next answers to paths with that part get the fault; held queries with it are answered now."""
        with self._changed:
            self._faults.extend([(path_part, fault)] * times)
            self._changed.notify_all()

    def heal(self) -> None:
        """Forget all faults."""
        with self._changed:
            self._faults.clear()

    def rotate_leaf(self, service: str) -> None:
        with self._changed:
            self._leaf_serials[service] = self._leaf_serials.get(service, 1) + 1
            self._touch(f"leaf {service}")

    def rotate_roots(self) -> None:
        with self._changed:
            self._roots += 1
            self._touch("roots")

    def take_rights(self) -> None:
        """Let nobody read services any more: lists are empty without a mark, as before Consul 1.20."""
        with self._changed:
            self.may_read_services = False
            self._touch("catalog")

    def touch_catalog(self) -> None:
        """Wake every endpoint watch without changing what it watches, as other services' changes do."""
        with self._changed:
            self._touch("catalog")

    def set_default_policy(self, policy: str) -> None:
        with self._changed:
            self.default_policy = policy
            self._touch("intentions")

    def count(self, path_part: str) -> int:
        """How many requests had that part in their path or query."""
        with self._changed:
            return sum(path_part in path for _, path, _ in self.requests)

    def connections(self) -> int:
        """How many are open."""
        return len(self._server.connections)

    # One request.

    def answer(self, method: str, target: str, headers: dict[str, str], body: Any) -> tuple[_Answer, Fault | None]:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = parts.path.removeprefix("/v1/")
        with self._changed:
            self.requests.append((method, target, headers))
            fault = self._take_fault(target)
            if fault is not None and fault.kind in ("status", "close"):
                return _Answer(fault.code, fault.text, dict(fault.headers)), fault
            compute = self._route(method, path, query, body)
            if compute is None:
                return _Answer(404, "no such endpoint", {}), fault
            answer = compute() if fault else self._held(target, query, compute)
            fault = fault or self._take_fault(target)
        if fault is not None and fault.kind in ("status", "close"):
            return _Answer(fault.code, fault.text, dict(fault.headers)), fault
        answer.headers["X-Consul-Default-ACL-Policy"] = self.default_policy
        return answer, fault

    def _take_fault(self, target: str) -> Fault | None:
        for position, (part, fault) in enumerate(self._faults):
            if part in target:
                del self._faults[position]
                return fault
        return None

    def _held(self, target: str, query: dict[str, str], compute: Callable[[], _Answer]) -> _Answer:
        end = time.monotonic() + _seconds(query.get("wait", "300s"))
        while True:
            answer = compute()
            is_same = (bool(query.get("hash")) and answer.headers.get("X-Consul-ContentHash") == query["hash"]) or (
                bool(query.get("index")) and int(answer.headers.get("X-Consul-Index", "-1")) == int(query["index"])
            )
            left = end - time.monotonic()
            has_fault = any(part in target for part, _ in self._faults)
            if answer.code != 200 or not is_same or left <= 0 or self._closing or has_fault:
                return answer
            self._changed.wait(left)

    def _touch(self, *topics: str) -> None:
        self._index += 1
        for topic in topics:
            self._topics[topic] = self._index
        self._changed.notify_all()

    def _indexed(self, topic: str, body: Any) -> _Answer:
        headers = {"X-Consul-Index": str(self._topics.get(topic, 10))}
        headers |= {"X-Consul-KnownLeader": "true", "X-Consul-LastContact": "0"}
        return _Answer(200, copy.deepcopy(body), headers)

    def _route(self, method: str, path: str, query: dict[str, str], body: Any) -> Callable[[], _Answer] | None:
        for wanted, pattern, handler in self._table():
            match = re.fullmatch(pattern, path)
            if match and method in wanted:
                names = [unquote(group) for group in match.groups()]
                compute = functools.partial(handler, *names, query=query, body=body)
                if method == "GET" or pattern.startswith("discovery"):
                    return compute
                done = compute()
                return lambda: done
        return None

    def _table(self) -> tuple[tuple[tuple[str, ...], str, Callable[..., _Answer]], ...]:
        get, put, post, delete = ("GET",), ("PUT",), ("POST",), ("DELETE",)
        return (
            (get, "status/leader", lambda **_: _Answer(200, "127.0.0.1:8300", {})),
            (get, "agent/self", self._agent_self),
            (get, "agent/services", lambda **_: _Answer(200, copy.deepcopy(self._services), {})),
            (put, "agent/service/register", self._register),
            (put, "agent/service/deregister/(.+)", self._deregister),
            (get, "agent/service/([^/]+)", self._service),
            (put, "agent/check/update/([^/]+)", self._update_check),
            (get, "agent/connect/ca/roots", self._ca_roots),
            (get, "agent/connect/ca/leaf/([^/]+)", self._leaf),
            (post, "agent/connect/authorize", self._authorize),
            (get, "connect/intentions/match", self._match),
            (get, "connect/intentions", self._all_intentions),
            (put, "connect/intentions/exact", self._put_intention),
            (delete, "connect/intentions/exact", self._delete_intention),
            (put, "config", self._put_config),
            (get, "config/mesh", lambda **_: self._indexed("config", copy.deepcopy(self._mesh))),
            (delete, "config/mesh/mesh", self._delete_mesh),
            (("GET", "POST"), "discovery-chain/([^/]+)", self._chain),
            (get, "health/connect/([^/]+)", self._health),
            (post, "query", self._create_query),
            (delete, "query/([^/]+)", self._delete_query),
            (get, "query/([^/]+)/execute", self._execute_query),
        )

    # Services.

    def _agent_self(self, **_: Any) -> _Answer:
        config = {"Datacenter": DATACENTER, "NodeName": "dev"}
        return _Answer(200, {"Config": config, "DebugConfig": {"DefaultIntentionPolicy": ""}}, {})

    def _register(self, *, body: Any, **_: Any) -> _Answer:
        service = _stored(body)
        sidecar = (body.get("Connect") or {}).get("SidecarService")
        self._services[service["ID"]] = service
        self._add_checks(service["ID"], body)
        if sidecar is not None:
            stored = _stored(_sidecar(service, sidecar))
            self._services[stored["ID"]] = stored
            self._add_checks(stored["ID"], sidecar)
        self._touch("catalog")
        return _Answer(200, None, {})

    def _add_checks(self, service_id: str, body: Any) -> None:
        given = [*(body.get("Checks") or []), *([body["Check"]] if body.get("Check") else [])]
        for check_id in [key for key, check in self._checks.items() if check["ServiceID"] == service_id]:
            del self._checks[check_id]
        for number, check in enumerate(given, 1):
            check_id = check.get("CheckID") or f"service:{service_id}:{number}"
            self._checks[check_id] = {
                "CheckID": check_id,
                "ServiceID": service_id,
                "Status": check.get("Status") or "critical",
            }

    def _deregister(self, service_id: str, **_: Any) -> _Answer:
        for name in (service_id, f"{service_id}-sidecar-proxy"):
            if self._services.pop(name, None) is not None:
                self._add_checks(name, {})
                self._touch("catalog")
        return _Answer(200, None, {})

    def _service(self, service_id: str, **_: Any) -> _Answer:
        service = self._services.get(service_id)
        if service is None:
            return _Answer(404, f"unknown service ID: {service_id}", {})
        digest = hashlib.sha256(json.dumps(service, sort_keys=True).encode()).hexdigest()[:16]
        return _Answer(200, service | {"ContentHash": digest}, {"X-Consul-ContentHash": digest})

    def _update_check(self, check_id: str, *, body: Any, **_: Any) -> _Answer:
        if check_id not in self._checks:
            return _Answer(404, f"Unknown check ID {check_id!r}", {})
        self._checks[check_id]["Status"] = body["Status"]
        self._touch("catalog")
        return _Answer(200, None, {})

    def _health(self, name: str, **_: Any) -> _Answer:
        return self._indexed("catalog", self._entries(name))

    def _entries(self, name: str) -> list[Any]:
        if not self.may_read_services:
            return []
        return [
            {
                "Node": {"Node": "dev", "Address": "127.0.0.1", "Datacenter": DATACENTER},
                "Service": service,
                "Checks": [check for check in self._checks.values() if check["ServiceID"] == service_id],
            }
            for service_id, service in sorted(self._services.items())
            if service.get("Kind") == "connect-proxy"
            and service["Proxy"]["DestinationServiceName"].lower() == name.lower()
        ]

    # The mesh.

    def _ca_roots(self, **_: Any) -> _Answer:
        listed = [
            {"ID": f"root-{number}", "RootCert": _pem(f"root {number}"), "Active": number == self._roots}
            for number in range(1, self._roots + 1)
        ]
        body = {"ActiveRootID": f"root-{self._roots}", "TrustDomain": TRUST_DOMAIN, "Roots": listed}
        return self._indexed("roots", body)

    def _leaf(self, service: str, **_: Any) -> _Answer:
        serial = self._leaf_serials.setdefault(service, 1)
        named = quote(service, safe="$&+,;=:@~-._")
        return self._indexed(
            f"leaf {service}",
            {
                "SerialNumber": f"{serial:02x}",
                "CertPEM": _pem(f"leaf {service} {serial}"),
                "PrivateKeyPEM": _pem(f"key {service} {serial}"),
                "Service": service,
                "ServiceURI": f"spiffe://{TRUST_DOMAIN}/ns/default/dc/{DATACENTER}/svc/{named}",
                "ValidAfter": "2026-11-22T00:00:00Z",
                "ValidBefore": "2026-11-25T00:00:00Z",
            },
        )

    def _matching(self, destination: str) -> list[Any]:
        found = [item for (_, name), item in self._intentions.items() if name in (destination, "*")]
        return sorted(found, key=lambda item: -item["Precedence"])

    def _match(self, *, query: dict[str, str], **_: Any) -> _Answer:
        name = query["name"]
        answer = self._indexed("intentions", {name: self._matching(name) or None})
        if not self.match_blocks:
            del answer.headers["X-Consul-Index"]
        return answer

    def _all_intentions(self, **_: Any) -> _Answer:
        if not self.may_list_intentions:
            return _Answer(403, "Permission denied", {})
        return self._indexed("intentions", list(self._intentions.values()))

    def _put_intention(self, *, query: dict[str, str], body: Any, **_: Any) -> _Answer:
        source, destination = query["source"], query["destination"]
        precedence = {(False, False): 9, (True, False): 8, (False, True): 6, (True, True): 5}
        self._intentions[source, destination] = {
            "SourceNS": "default",
            "SourceName": source,
            "DestinationNS": "default",
            "DestinationName": destination,
            "SourceType": "consul",
            "Precedence": precedence[source == "*", destination == "*"],
        } | body
        self._touch("intentions")
        return _Answer(200, True, {})

    def _delete_intention(self, *, query: dict[str, str], **_: Any) -> _Answer:
        if self._intentions.pop((query["source"], query["destination"]), None) is not None:
            self._touch("intentions")
        return _Answer(200, True, {})

    def _authorize(self, *, body: Any, **_: Any) -> _Answer:
        caller = body["ClientCertURI"].rpartition("/svc/")[2]
        for item in self._matching(body["Target"]):
            if item["SourceName"] in (caller, "*"):
                allowed = item.get("Action") == "allow"
                return _Answer(200, {"Authorized": allowed, "Reason": "Matched L4 intention: .."}, {})
        allowed = self.default_policy == "allow"
        return _Answer(200, {"Authorized": allowed, "Reason": "Default behavior configured by ACLs"}, {})

    def _put_config(self, *, body: Any, **_: Any) -> _Answer:
        # Of all config entries only the mesh entry and the protocol of service-defaults mean something here.
        if body["Kind"] == "service-defaults":
            self._protocols[body["Name"]] = body.get("Protocol", "tcp")
        elif body["Kind"] == "mesh":
            self._mesh = [body]
        self._touch("config")
        return _Answer(200, True, {})

    def _delete_mesh(self, **_: Any) -> _Answer:
        self._mesh = []
        self._touch("config")
        return _Answer(200, {}, {})

    def _chain(self, service: str, *, query: dict[str, str], body: Any, **_: Any) -> _Answer:
        if not self.may_read_services:
            return _Answer(403, "Permission denied", {})
        datacenter = query.get("compile-dc", DATACENTER)
        target = f"{service}.default.default.{datacenter}"
        protocol = (body or {}).get("OverrideProtocol") or self._protocols.get(service, "tcp")
        resolver = {"ConnectTimeout": "5s", "Default": True, "Target": target}
        chain = {
            "ServiceName": service,
            "Namespace": "default",
            "Datacenter": datacenter,
            "Protocol": protocol,
            "StartNode": f"resolver:{target}",
            "Nodes": {f"resolver:{target}": {"Type": "resolver", "Name": target, "Resolver": resolver}},
            "Targets": {
                target: {
                    "ID": target,
                    "Service": service,
                    "Namespace": "default",
                    "Datacenter": datacenter,
                    "MeshGateway": {},
                    "Subset": {},
                    "SNI": f"{service}.default.{datacenter}.internal.{TRUST_DOMAIN}",
                }
            },
        }
        return self._indexed("config", {"Chain": chain})

    # Prepared queries.

    def _create_query(self, *, body: Any, **_: Any) -> _Answer:
        query_id = f"00000000-0000-0000-0000-{len(self._queries):012d}"
        self._queries[query_id] = body
        return _Answer(200, {"ID": query_id}, {})

    def _delete_query(self, query_id: str, **_: Any) -> _Answer:
        self._queries.pop(query_id, None)
        return _Answer(200, None, {})

    def _execute_query(self, name: str, **_: Any) -> _Answer:
        found = [body for key, body in self._queries.items() if name in (key, body["Name"])]
        if not found:
            return _Answer(404, "Query not found", {"X-Consul-Index": "1"})
        service = found[0]["Service"]["Service"]
        nodes = [
            entry for entry in self._entries(service) if all(check["Status"] != "critical" for check in entry["Checks"])
        ]
        answer = self._indexed("catalog", {"Service": service, "Nodes": nodes, "Datacenter": DATACENTER})
        answer.headers["X-Consul-Index"] = "1"
        return answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without a buffer each keep-alive answer costs 40 ms (two packets, Nagle, delayed acknowledgement).
    wbufsize = 1024 * 1024

    def setup(self) -> None:
        super().setup()
        assert isinstance(self.server, _Server)
        self.fake = self.server.fake
        self.server.connections.add(self.connection)
        if self.fake._closing:
            # `end` may have looked before; it waits for us.
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        assert isinstance(self.server, _Server)
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the parent's name
        """Nothing: tests show what they need."""

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(text) if text else None
        answer, fault = self.fake.answer(self.command, self.path, dict(self.headers), body)
        with contextlib.suppress(OSError):
            self._send(answer, fault)

    def _send(self, answer: _Answer, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        if fault is not None and kind == "delay":
            time.sleep(fault.seconds)
        if fault is not None and kind == "body":
            answer.body = fault.body
        if kind == "close":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        is_text = answer.code != 200
        data = answer.body.encode() if is_text else b"" if answer.body is None else json.dumps(answer.body).encode()
        if kind == "garbage":
            data = b"<html>not what you asked for</html>"
        headers = answer.headers | {"Content-Type": "text/plain" if is_text else "application/json"}
        headers |= {"Content-Length": str(len(data))} | (dict(fault.headers) if fault else {})
        self.send_response(answer.code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if kind == "truncate" else data)
        self.wfile.flush()
        self.close_connection = self.close_connection or kind == "truncate"


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, fake: FakeConsul) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fake = fake
        self.connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name="fake consul")

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that goes away is part of the tests."""

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        if self._thread.ident is not None:
            self.shutdown()
            self._thread.join(5)
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


def _stored(body: Any) -> dict[str, Any]:
    service = {
        "ID": body.get("ID") or body["Name"],
        "Service": body["Name"],
        "Tags": body.get("Tags") or [],
        "Meta": body.get("Meta") or {},
        "Port": body.get("Port", 0),
        "Address": body.get("Address", ""),
        "Weights": body.get("Weights") or {"Passing": 1, "Warning": 1},
        "Datacenter": DATACENTER,
    }
    if body.get("Kind"):
        proxy = {name: value for name, value in (body.get("Proxy") or {}).items() if value}
        for upstream in proxy.get("Upstreams", []):
            upstream.setdefault("DestinationType", "service")
        service |= {"Kind": body["Kind"], "Proxy": proxy}
    return service


def _sidecar(parent: dict[str, Any], sidecar: dict[str, Any]) -> dict[str, Any]:
    proxy = dict(sidecar.get("Proxy") or {})
    proxy |= {"DestinationServiceName": parent["Service"], "DestinationServiceID": parent["ID"]}
    proxy.setdefault("LocalServiceAddress", "127.0.0.1")
    proxy.setdefault("LocalServicePort", parent["Port"])
    return {
        "Kind": "connect-proxy",
        "ID": f"{parent['ID']}-sidecar-proxy",
        "Name": f"{parent['Service']}-sidecar-proxy",
        "Port": sidecar.get("Port") or 21000,
        "Address": sidecar.get("Address") or parent["Address"],
        "Tags": parent["Tags"],
        "Meta": parent["Meta"],
        "Weights": sidecar.get("Weights"),
        "Proxy": proxy,
    }


def _pem(text: str) -> str:
    body = hashlib.sha256(text.encode()).hexdigest()
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", text)
    assert match, text
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60}[match[2]]
