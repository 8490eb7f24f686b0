"""Free TCP ports, as near to the wanted ones as possible."""

import socket

from demo.talk import StepError, Talk

_TRIES = 200


class Ports:
    """Hands out ports, each once, also among demos that run at once; says so when the usual one is taken."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._claims: dict[int, socket.socket] = {}

    def take(self, usual: int, purpose: str, host: str = "127.0.0.1", count: int = 1) -> int:
        """The first of `count` free ports in a row, `usual` if possible.

        Raises:
            StepError: there is none near it.
        """
        ours = usual in self._claims
        for first in range(usual, usual + _TRIES):
            if self._claim(host, range(first, first + count)):
                if first != usual and not ours:
                    self._talk.say(f"Port {usual} ({purpose}) is taken: using {first} instead.")
                return first
        raise StepError(f"no free port for {purpose} from {usual} to {usual + _TRIES - 1}; free one of them")

    def _claim(self, host: str, ports: range) -> bool:
        claims = {port: _claim(port) for port in ports if port not in self._claims and _bindable(host, port)}
        held = {port: claim for port, claim in claims.items() if claim}
        if len(held) == len(ports):
            self._claims |= held
            return True
        for claim in held.values():
            claim.close()
        return False


def _claim(port: int) -> socket.socket | None:
    """A socket that says to other demos that the port will be used; it goes with this process.

    Its name is abstract (Linux, unix(7)): no file, and like the port it belongs to one network namespace.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0hcc-demo-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim


def _bindable(host: str, port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):  # Consul's gossip uses both
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind == socket.SOCK_STREAM:
                # As servers do it: what only waits for the end of old connections is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
