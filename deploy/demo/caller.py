"""HTTP requests, the demo's curl: a new connection each, straight to 127.0.0.1."""

import http.client
from dataclasses import dataclass

_TIMEOUT_S = 5.0
_CLOSED = "the connection was closed without an answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status and a body, or (status 0) why nothing did."""

    status: int
    body: str

    @property
    def closed(self) -> bool:
        """Whether the connection ended before anything of an answer came."""
        return not self.status and self.body == _CLOSED


def fetch(port: int, path: str = "/") -> Answer:
    """The answer to `GET path`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"User-Agent": "hcc-demo"})
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(errors="replace"))
    except (OSError, http.client.HTTPException) as exc:
        return Answer(0, _reason(exc))
    finally:
        connection.close()


def _reason(exc: Exception) -> str:
    if isinstance(exc, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return _CLOSED
    if isinstance(exc, ConnectionRefusedError):
        return "nobody listens there"
    return f"{type(exc).__name__}: {exc}"
