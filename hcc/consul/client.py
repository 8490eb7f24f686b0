"""The HTTP API of one Consul agent, built on python-consul2: the only module that imports `consul`.

python-consul2 gives its transport interface and the calls it has right; the endpoints it lacks are thin
methods here. What it does not have: hash-based blocking, any Connect endpoint that blocks, and the whole
registration of a service. Answers come back as parsed JSON; `hcc.consul.decode` knows their meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote, urlencode

from consul import base

from hcc.consul.agent_tls import AgentTls
from hcc.consul.environment import ConsulSettings
from hcc.consul.errors import ConsulAnswerError, ConsulUnavailableError
from hcc.consul.exchange import Exchange
from hcc.consul.keys import ChainWatch, EndpointsWatch
from hcc.consul.response import Result, result_of, status_error
from hcc.mesh.secret import Secret

# For what does not block: Consul may wait for a leader (7 s), or for a certificate to be signed.
ANSWER_TIMEOUT_S = 15.0
DEFAULT_WAIT_S = 60.0
# Of rights, in one question: Consul refuses more.
MAX_RIGHTS = 64
_OK = 200
_DEFAULT = "default"
_FLAGS = ("stale", "cached")
_Callback = Callable[[object], object]
Parameters = list[tuple[str, str]]


class ConsulClient:
    """One connection pool to the agent. Use it from one thread; `interrupt` may be called from any.

    Every method raises:
        ConsulUnavailableError: no answer.
        ConsulPermissionError, ConsulNotFoundError, ConsulStatusError: another status than 200.
        ConsulAnswerError: the answer is not JSON.
        InterruptedPollError: `interrupt` was called.

    Args:
        token: asked before every request, so that it may change.
        wait_s: how long Consul may hold a blocking query.
        tls: to share one among clients; made when not given.
        count: told the outcome of every request: the status of the answer, `none` when there was none.
    """

    def __init__(
        self,
        settings: ConsulSettings,
        token: Callable[[], Secret | None] | None = None,
        *,
        wait_s: float = DEFAULT_WAIT_S,
        tls: AgentTls | None = None,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.wait_s = wait_s
        self._namespace = (("ns", settings.namespace), ("partition", settings.partition))
        fixed = settings.token
        self._exchange = Exchange(settings, tls or AgentTls(settings), token or (lambda: fixed))
        self._http = _Http(self._exchange, count)
        self._agent = _Groups(self._http).agent

    def interrupt(self) -> None:
        """Break off the request that is waiting, and refuse all later ones. Any thread may call this."""
        self._exchange.interrupt()

    def close(self) -> None:
        """Close the connections."""
        self._exchange.close()

    def services(self) -> Result:
        """All services registered on this agent, by ID."""
        return self._get("/v1/agent/services", [])

    def agent_self(self) -> Result:
        """The agent's configuration; needs agent:read."""
        self._agent.self()
        return self._http.last

    def servers(self) -> Result:
        """The healthy servers of the agent's datacenter, as instances of the service `consul`."""
        return self._get("/v1/health/service/consul", [("stale", ""), ("passing", "true")])

    def service(self, service_id: str, hash_: str = "") -> Result:
        """One service registered on this agent; blocks while it has that hash."""
        held = [("hash", hash_), ("wait", self._wait())] if hash_ else []
        return self._get(f"/v1/agent/service/{_segment(service_id)}", held, blocks=bool(hash_))

    def roots(self, index: int = 0) -> Result:
        """The CA certificates."""
        return self._blocking("/v1/agent/connect/ca/roots", [], index)

    def leaf(self, service: str, index: int = 0) -> Result:
        """The certificate and private key of a service, by its name."""
        return self._blocking(f"/v1/agent/connect/ca/leaf/{_segment(service)}", [], index)

    def intentions(self, service: str, index: int = 0) -> Result:
        """The intentions whose destination is this service, in a map with its name as the one key."""
        return self._blocking("/v1/connect/intentions/match", [("by", "destination"), ("name", service)], index)

    def mesh(self, index: int = 0) -> Result:
        """The mesh entry in a list, which is empty without one; no right is needed."""
        return self._blocking("/v1/config/mesh", [], index)

    def token_providers(self, index: int = 0) -> Result:
        """The `jwt-provider` entries; needs service:write on any service, or mesh:read."""
        return self._blocking("/v1/config/jwt-provider", [], index)

    def all_intentions(self, index: int = 0) -> Result:
        """Every intention that the token may see; blocks where `intentions` does not (before Consul 1.9), too."""
        return self._blocking("/v1/connect/intentions", [], index)

    def config_entry(self, kind: str, name: str) -> Result:
        """One config entry."""
        return self._get(f"/v1/config/{_segment(kind)}/{_segment(name)}", [])

    def authorize(self, service: str, caller_uri: str) -> Result:
        """Whether the agent would let a caller with this SPIFFE URI connect to the service."""
        asked = {"Target": service, "ClientCertURI": caller_uri, "ClientCertSerial": "00"}
        self._http.post(_ignored, "/v1/agent/connect/authorize", self._own([]), data=json.dumps(asked))
        return self._http.last

    def authorized(self, rights: Sequence[tuple[str, str, str]]) -> Result:
        """Whether the token has each right, given as resource, access and name; status 401 where ACLs are off.

        Undocumented: what Consul's own UI asks. Seen alike on 1.14.4 and 1.20.1.
        """
        asked = [{"Resource": resource, "Access": access, "Segment": name} for resource, access, name in rights]
        said: list[object] = []
        for start in range(0, len(asked), MAX_RIGHTS):
            part = json.dumps(asked[start : start + MAX_RIGHTS])
            self._http.post(_ignored, "/v1/internal/acl/authorize", self._own([]), data=part)
            answer = self._http.last.data
            if not isinstance(answer, list):
                raise ConsulAnswerError("acl/authorize", "a list", type(answer).__name__)
            said += answer
        return Result(said)

    def chain(self, key: ChainWatch, index: int = 0, *, cached: bool = False, asked_in: str = "") -> Result:
        """The compiled discovery chain, from any server, or from the agent's cache, which follows a server.

        `asked_in` is the datacenter whose servers answer, by what the token may there; empty for the agent's own.
        """
        source = "cached" if cached else "stale"
        params = [(source, ""), ("dc", asked_in), ("compile-dc", key.datacenter)]
        params += self._tenancy(key.namespace, key.partition)
        override = _chain_override(key)
        path = f"/v1/discovery-chain/{_segment(key.service)}"
        return self._blocking(path, params, index, body=override if len(override) else None)

    def endpoints(self, key: EndpointsWatch, index: int = 0, parse: Callable[[bytes], object] = json.loads) -> Result:
        """The Connect-capable instances of a service with their checks, from any server; `parse` makes the data."""
        params = [
            ("stale", ""),
            ("dc", key.datacenter),
            ("filter", key.filter),
            *self._tenancy(key.namespace, key.partition),
        ]
        return self._blocking(f"/v1/health/connect/{_segment(key.service)}", params, index, parse=parse)

    def execute_query(self, name: str, datacenter: str = "") -> Result:
        """What a prepared query finds now, sidecars instead of applications. Cannot block."""
        params = [("connect", "true"), ("dc", datacenter)]
        return self._get(f"/v1/query/{_segment(name)}/execute", params)

    def register(self, definition: Mapping[str, object]) -> None:
        """Register a service, replacing one of the same ID.

        Args:
            definition: as Consul documents it (`Name`, `ID`, `Port`, `Checks`, `Proxy`, ..).
        """
        self._http.put(_ignored, "/v1/agent/service/register", self._own([]), json.dumps(definition))

    def deregister(self, service_id: str) -> None:
        """Deregister a service of this agent."""
        self._http.put(_ignored, f"/v1/agent/service/deregister/{_segment(service_id)}", self._own([]))

    def critical_checks(self) -> Result:
        """The checks of this agent that are critical, by ID; one of each service that is in maintenance mode."""
        return self._get("/v1/agent/checks", [("filter", 'Status == "critical"')])

    def maintenance(self, service_id: str, *, on: bool, reason: str) -> None:
        """Put a service of this agent into maintenance mode, or out of it."""
        params = self._own([("enable", "true" if on else "false"), ("reason", reason)])
        self._http.put(_ignored, f"/v1/agent/service/maintenance/{_segment(service_id)}", params)

    def _blocking(
        self,
        path: str,
        params: Parameters,
        index: int,
        body: Mapping[str, object] | None = None,
        parse: Callable[[bytes], object] = json.loads,
    ) -> Result:
        held = [("index", str(index)), ("wait", self._wait())] if index else []
        return self._get(path, [*params, *held], blocks=bool(index), body=body, parse=parse)

    def _get(
        self,
        path: str,
        params: Parameters,
        *,
        blocks: bool = False,
        body: Mapping[str, object] | None = None,
        parse: Callable[[bytes], object] = json.loads,
    ) -> Result:
        self._http.timeout = _read_timeout_s(self.wait_s) if blocks else ANSWER_TIMEOUT_S
        self._http.parse = parse
        try:
            if body is None:
                self._http.get(_ignored, path, self._own(params))
            else:
                self._http.post(_ignored, path, self._own(params), data=json.dumps(body))
        finally:
            self._http.timeout = ANSWER_TIMEOUT_S
            self._http.parse = json.loads
        return self._http.last

    def _own(self, params: Parameters) -> Parameters:
        given = {name for name, _ in params}
        ours = [(name, value) for name, value in self._namespace if value and name not in given]
        return [(name, value) for name, value in params if value or name in _FLAGS] + ours

    def _tenancy(self, namespace: str, partition: str) -> Parameters:
        """Of a target; where it has none, or ours is the default as well, nothing.

        Consul without Enterprise refuses these parameters, whatever their value.
        """
        targets = {"ns": namespace, "partition": partition}
        own = {name: value or _DEFAULT for name, value in self._namespace}
        needless = (_DEFAULT, _DEFAULT)
        return [(name, value) for name, value in targets.items() if value and (value, own[name]) != needless]

    def _wait(self) -> str:
        return f"{round(self.wait_s * 1000)}ms"


class _Http(base.HTTPClient):  # type: ignore[misc] # python-consul2 has no types
    """python-consul2's transport, with our exchange below it and the whole of the last answer kept."""

    def __init__(self, exchange: Exchange, count: Callable[[str], None]) -> None:
        # Not the parent's: it knows neither unix sockets nor IPv6.
        self.timeout = ANSWER_TIMEOUT_S
        self.parse: Callable[[bytes], object] = json.loads
        self.last = Result(None)
        self._exchange = exchange
        self._count = count

    def get(self, callback: _Callback, path: str, params: Parameters | None = None, headers: object = None) -> object:
        del headers  # only ever the token, which the exchange adds
        return self._request("GET", callback, path, params)

    def put(
        self,
        callback: _Callback,
        path: str,
        params: Parameters | None = None,
        data: str = "",
        headers: object = None,
    ) -> object:
        del headers
        return self._request("PUT", callback, path, params, data)

    def delete(
        self,
        callback: _Callback,
        path: str,
        params: Parameters | None = None,
        data: str = "",
        headers: object = None,
    ) -> object:
        del headers
        return self._request("DELETE", callback, path, params, data)

    def post(
        self,
        callback: _Callback,
        path: str,
        params: Parameters | None = None,
        data: str = "",
        headers: object = None,
    ) -> object:
        del headers
        return self._request("POST", callback, path, params, data)

    def _request(
        self, method: str, callback: _Callback, path: str, params: Parameters | None, data: str = ""
    ) -> object:
        target = f"{path}?{urlencode(params)}" if params else path
        try:
            code, headers, body = self._exchange.request(method, target, data, self.timeout)
        except ConsulUnavailableError:
            self._count("none")
            raise
        self._count(str(code))
        if code != _OK:
            raise status_error(code, f"{method} {path}", body.decode("utf-8", "replace"), headers)
        self.last = result_of(path, headers, body, self.parse)
        # Only the library's own callbacks want a text; of many instances it is long.
        text = "" if callback is _ignored else body.decode("utf-8", "replace")
        return callback(base.Response(code, headers, text, body))


class _Groups(base.Consul):  # type: ignore[misc] # python-consul2 has no types
    """The groups of python-consul2's calls that we use, on our transport."""

    def __init__(self, http: _Http) -> None:
        # Not the parent's: it lets the environment override its arguments, and opens a transport of its own.
        self.http = http
        self.token = None
        self.dc = None
        self.consistency = "default"
        self.scheme = ""
        self.agent = base.Consul.Agent(self)


def _read_timeout_s(wait_s: float) -> float:
    # Consul adds up to a sixteenth to spread the load.
    return wait_s * 17 / 16 + 5


def _segment(name: str) -> str:
    return quote(name, safe="")


def _chain_override(key: ChainWatch) -> dict[str, object]:
    override: dict[str, object] = {}
    if key.protocol:
        override["OverrideProtocol"] = key.protocol
    if key.mesh_gateway:
        override["OverrideMeshGateway"] = {"Mode": key.mesh_gateway}
    return override


def _ignored(response: object) -> object:
    return response
