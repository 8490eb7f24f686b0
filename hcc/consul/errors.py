"""Why Consul could not be used, split by what helps: waiting, a better token, a look at the answer."""

from __future__ import annotations

from hcc.errors import HccError, PeerError


class ConsulError(PeerError):
    """Consul, or the way to it, failed."""


class ConsulUnavailableError(ConsulError):
    """No answer: refused, reset, timed out, or TLS failed."""


class ConsulTlsError(ConsulUnavailableError):
    """No answer, as one side does not take the other's certificate or TLS; whoever is there, waiting does not help."""


class ConsulStatusError(ConsulError):
    """An HTTP status other than 200. `retry_after_s` is what Consul asks to wait, 0 when it does not say."""

    def __init__(self, message: str, code: int, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class ConsulPermissionError(ConsulStatusError):
    """The token lacks a right (403), or an answer was filtered by it; the message names the right."""


class ConsulCutOffError(ConsulStatusError):
    """Refused (403), but only as the agent cannot ask its servers about the token: waiting helps, no token does."""


class ConsulNotFoundError(ConsulStatusError):
    """The thing asked for does not exist (404)."""


class ConsulAnswerError(ConsulError):
    """An answer has another shape than documented.

    Args:
        path: where, such as `Chain.Nodes[resolver:db].Type`.
        expected, found: for people.
    """

    def __init__(self, path: str, expected: str, found: str) -> None:
        super().__init__(f"{path}: expected {expected}, found {found}")
        self.path = path
        self.expected = expected
        self.found = found


class InterruptedPollError(ConsulError):
    """The request was broken off because its watch was stopped."""


class SelectionError(HccError):
    """None or several of the registered proxies fit; the message names the candidates."""


class NoProxyError(SelectionError):
    """No registered proxy fits; it may be registered later."""


class AmbiguousProxyError(SelectionError):
    """Several proxies fit."""
