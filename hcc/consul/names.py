"""Host names of instances and of the application, turned into addresses, since HAProxy is given addresses only."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import replace

from hcc.consul.answers import Instance, Registration
from hcc.consul.options import is_ip

log = logging.getLogger(__name__)


def look_up(name: str) -> tuple[str, ...]:
    """The addresses of a host name, at least one, in the resolver's order.

    Raises:
        OSError: it has none, or the name server does not answer. UnicodeError: it is no name.
    """
    return tuple(str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))


class Names:
    """Resolves, and remembers the last good address of each name, so that a DNS failure takes nothing away.

    Name servers give several addresses in turns: one that is still among them stays.
    """

    def __init__(self, lookup: Callable[[str], tuple[str, ...]] = look_up) -> None:
        self._lookup = lookup
        self._known: dict[str, str] = {}
        self._failing: set[str] = set()

    def resolved(self, instances: tuple[Instance, ...]) -> tuple[Instance, ...]:
        """The instances with IP addresses, in order; one that never resolved is left out."""
        if all(is_ip(instance.address) for instance in instances):
            return instances
        names = {instance.address for instance in instances if not is_ip(instance.address)}
        addresses = {name: self._address(name, "endpoint", "left out") for name in sorted(names)}
        found = (replace(one, address=addresses.get(one.address, one.address)) for one in instances)
        return tuple(instance for instance in found if instance.address)

    def application(self, found: Registration) -> Registration:
        """The registration with the application's IP address; a name that never resolved stays, and is asked again."""
        name = found.proxy.local_address
        if is_ip(name):
            return found
        address = self._address(name, "application", "its callers get no answer until it has one")
        return replace(found, proxy=replace(found.proxy, local_address=address or name))

    def _address(self, name: str, whose: str, else_: str) -> str:
        try:
            addresses = self._lookup(name)
        except (OSError, UnicodeError) as exc:
            if name not in self._failing:
                self._failing.add(name)
                kept = self._known.get(name)
                log.warning(
                    "%s %s: expected a host name with an address, found %s; %s",
                    whose,
                    name,
                    exc,
                    f"keeping {kept}" if kept else else_,
                )
        else:
            self._failing.discard(name)
            if self._known.get(name) not in addresses:
                self._known[name] = addresses[0]
        return self._known.get(name, "")
