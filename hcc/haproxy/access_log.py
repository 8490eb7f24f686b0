"""The lines that make HAProxy log each connection, or request, as one JSON object.

Made by hand, as HAProxy encodes JSON itself only since 3.0. Whatever a peer may choose goes through `json()`; no query
string is logged, as it may hold a secret. Source: HAProxy configuration.txt section 8.2.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hcc.haproxy import words
from hcc.haproxy.model import Mode
from hcc.mesh.naming import joined

STDOUT = "stdout"
_MAX_LINE_BYTES = 8192
# Escaping can make six bytes of one.
_MAX_PATH_BYTES = 1024
_PATH = "txn.hcc_log_path"
_PLAIN = re.compile(r"[A-Za-z0-9_.:-]+")
_ENDING = '"bytes_in":%U,"bytes_out":%B,"ms":%Tt,"end":"%ts"'


def target(where: str) -> Iterator[str]:
    """Where lines go: `stdout`, the path of a syslog socket, `host:port` of a syslog server; empty for nowhere.

    Raises:
        WordError: nothing that HAProxy could be told.
    """
    if where == STDOUT:
        yield f"  log stdout len {_MAX_LINE_BYTES} format raw local0 info"
    elif where.startswith("/"):
        yield f"  log {words.socket_path(where)} len {_MAX_LINE_BYTES} format rfc3164 local0 info"
    elif where:
        host, _, port = where.rpartition(":")
        yield f"  log {words.address(host.strip('[]'), int(port))} len {_MAX_LINE_BYTES} format rfc5424 local0 info"


def public(mode: Mode, caller: str, *, errors: bool) -> tuple[str, ...]:
    """For the public listener.

    Args:
        mode: of the listener.
        caller: the sample that gives the caller's service name.
        errors: whether HAProxy can be told how to log a failed handshake; else it does so in words of its own.
    """
    who = f'"direction":"in","caller":"%[{caller},json(utf8s)]"'
    error = '  error-log-format \'{"time":%Ts.%ms,"direction":"in","error":"%[fc_err_str,json(utf8s)]"}\''
    # Consul's check of the port only connects; it is nobody's call.
    return (*_lines(mode, who), "  option dontlognull", *((error,) if errors else ()))


def upstream(mode: Mode, label: str) -> tuple[str, ...]:
    """For the listener of an upstream, by its label."""
    name = label if _PLAIN.fullmatch(label) else joined(label)
    return tuple(_lines(mode, f'"direction":"out","upstream":"{name}","instance":"%si:%sp"'))


def exposed() -> tuple[str, ...]:
    """For a listener of exposed paths."""
    # Who checks whether the port is open only connects.
    return (*_lines(Mode.HTTP, '"direction":"exposed"'), "  option dontlognull")


def _lines(mode: Mode, who: str) -> Iterator[str]:
    yield "  log global"
    request = ""
    if mode is Mode.HTTP:
        yield f"  http-request set-var({_PATH}) path,bytes(0,{_MAX_PATH_BYTES})"
        request = f'"method":"%HM","path":"%[var({_PATH}),json(utf8s)]","status":%ST,'
    yield f"  log-format '{{\"time\":%Ts.%ms,{who},{request}{_ENDING}}}'"
