"""One HTTP request to the agent and its whole answer, over a session of `requests`, with our errors."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Mapping

import requests
from requests.auth import HTTPBasicAuth

from hcc.consul.environment import ConsulSettings
from hcc.consul.errors import ConsulAnswerError, ConsulTlsError, ConsulUnavailableError, InterruptedPollError
from hcc.consul.sockets import AgentAdapter, Switch
from hcc.mesh.secret import Secret

CONNECT_TIMEOUT_S = 2.0
# 10,000 endpoints take about 20 MB.
MAX_ANSWER_BYTES = 128 * 1024 * 1024


class Exchange:
    """Requests to one agent. For one thread, but for `interrupt`.

    Args:
        settings: address and basic authentication.
        tls: asked before every new connection; gives None for plain HTTP.
        token: asked before every request.
    """

    def __init__(
        self,
        settings: ConsulSettings,
        tls: Callable[[], ssl.SSLContext | None],
        token: Callable[[], Secret | None],
    ) -> None:
        self._base_url = settings.address.base_url()
        self._label = settings.address.label()
        self._switch = Switch()
        self._token = token
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.auth = _basic_auth(settings.auth)
        # The agent is near: to compress and expand the many instances of a service takes longer than to send them.
        self._session.headers["Accept-Encoding"] = "identity"
        adapter = AgentAdapter(settings.address, self._switch, tls, settings.tls_server_name)
        self._session.mount(self._base_url, adapter)

    def request(self, method: str, target: str, data: str, timeout_s: float) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers (any case) and body of the answer.

        Args:
            method: of HTTP.
            target: path and query, encoded.
            data: JSON, or empty.
            timeout_s: longest silence.

        Raises:
            ConsulUnavailableError: no answer; ConsulTlsError where certificates or TLS are why.
            InterruptedPollError: `interrupt` was called.
        """
        try:
            return self._exchange(method, f"{self._base_url}{target}", data, timeout_s)
        except (requests.RequestException, OSError) as exc:
            if self._switch.is_off:
                raise InterruptedPollError(target) from exc
            path = target.partition("?")[0]
            msg = f"Consul at {self._label}: expected an answer to {method} {path}, found {_cause(exc)}"
            kind = ConsulTlsError if _is_of_tls(exc) else ConsulUnavailableError
            raise kind(msg) from exc

    def interrupt(self) -> None:
        """Break off the request that is waiting, and refuse all later ones. Any thread may call this."""
        self._switch.turn_off()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _exchange(self, method: str, url: str, data: str, timeout_s: float) -> tuple[int, Mapping[str, str], bytes]:
        token = self._token()
        with self._session.request(
            method,
            url,
            data=data or None,
            headers={"X-Consul-Token": token.reveal()} if token else None,
            timeout=(CONNECT_TIMEOUT_S, timeout_s),
            allow_redirects=False,
            stream=True,
        ) as response:
            return response.status_code, response.headers, _body(response)


def _body(response: requests.Response) -> bytes:
    parts: list[bytes] = []
    left = MAX_ANSWER_BYTES
    for part in response.iter_content(64 * 1024):
        left -= len(part)
        if left < 0:
            raise ConsulAnswerError(response.url, f"at most {MAX_ANSWER_BYTES} bytes", "more")
        parts.append(part)
    return b"".join(parts)


def _basic_auth(auth: Secret | None) -> HTTPBasicAuth | None:
    if auth is None:
        return None
    # The bytes that were given, as by Consul's own programs: of a text `requests` would make Latin-1.
    user, _, password = os.fsencode(auth.reveal()).partition(b":")
    return HTTPBasicAuth(user, password)


def _cause(exc: BaseException) -> str:
    """The socket's own word ("connection refused") where there is one; the libraries wrap it several times."""
    if isinstance(exc, requests.exceptions.InvalidHeader):
        # It quotes the header, which is the token.
        return "a token that no header can carry"
    layers = list(_layers(exc))
    refused = next((layer for layer in layers if isinstance(layer, ssl.SSLError) and layer.reason), None)
    if refused is not None:
        return _of_tls(refused)
    spoken = (layer.strerror for layer in layers if isinstance(layer, OSError) and layer.strerror)
    return next(spoken, "").lower() or str(layers[-1]).rpartition(">: ")[2] or type(exc).__name__


def _is_of_tls(exc: BaseException) -> bool:
    """Whether it is about certificates or TLS itself, and not a connection that ended."""
    return isinstance(exc, requests.exceptions.SSLError) and not any(
        isinstance(layer, ssl.SSLEOFError | ssl.SSLZeroReturnError | TimeoutError) for layer in _layers(exc)
    )


def _of_tls(exc: ssl.SSLError) -> str:
    """OpenSSL's reason (`TLSV13_ALERT_CERTIFICATE_REQUIRED`) for people."""
    if exc.reason == "WRONG_VERSION_NUMBER":
        return "no TLS there: that port speaks plain HTTP"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {exc.verify_message}"
    _, alert, told = (exc.reason or "").partition("_ALERT_")
    words = (told if alert else exc.reason or "").replace("_", " ").lower()
    return f"that the agent refuses TLS with us: {words}" if alert else f"that TLS fails: {words}"


def _layers(exc: BaseException) -> Iterator[BaseException]:
    yield exc
    inner = (getattr(exc, "reason", None), *exc.args, exc.__cause__)
    for layer in inner:
        if isinstance(layer, BaseException) and layer is not exc:
            yield from _layers(layer)
            return
