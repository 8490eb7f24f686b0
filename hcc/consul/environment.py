"""How to reach Consul, from flags and from the variables that Consul's own programs use; flags win.

Source: reference/consul.md section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hcc.consul.address import AgentAddress, agent_address
from hcc.errors import SettingError
from hcc.mesh.secret import Secret

# As Go's strconv.ParseBool, which Consul's own programs use.
_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """How to reach Consul and who we are to it. Empty texts mean "not given".

    Args:
        token: given as such; wins over `token_file`.
        token_file: read on request by `hcc.consul.credentials`.
        auth: `user:password` of HTTP basic authentication.
        ca_path: a directory of certificates, used when `ca_file` is not given.
    """

    address: AgentAddress
    token: Secret | None = None
    token_file: str = ""
    auth: Secret | None = None
    ssl_verify: bool = True
    ca_file: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    tls_server_name: str = ""
    namespace: str = ""
    partition: str = ""


def consul_settings(  # noqa: PLR0913 - one keyword for each flag
    environ: Mapping[str, str],
    *,
    http_addr: str | None = None,
    token: str | None = None,
    token_file: str | None = None,
    ssl: bool | None = None,
    ssl_verify: bool | None = None,
    ca_file: str | None = None,
    ca_path: str | None = None,
    client_cert: str | None = None,
    client_key: str | None = None,
    tls_server_name: str | None = None,
    namespace: str | None = None,
    partition: str | None = None,
) -> ConsulSettings:
    """The settings that flags (None: not given) and environment make together.

    Raises:
        SettingError: a variable or flag that cannot be used; the message names it.
    """
    certificate = _text(environ, "CONSUL_CLIENT_CERT", client_cert)
    key = _text(environ, "CONSUL_CLIENT_KEY", client_key)
    if bool(certificate) != bool(key):
        missing, given = ("key", "certificate") if certificate else ("certificate", "key")
        msg = (
            f"expected a client certificate and its key together (CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY), "
            f"found the {given} alone; give the {missing} too"
        )
        raise SettingError(msg)
    own_token, own_token_file = _token(environ, token, token_file)
    auth = environ.get("CONSUL_HTTP_AUTH", "")
    return ConsulSettings(
        address=_address(environ, http_addr, ssl),
        token=own_token,
        token_file=own_token_file,
        auth=Secret(auth) if auth else None,
        ssl_verify=_flag(environ, "CONSUL_HTTP_SSL_VERIFY", ssl_verify, default=True),
        ca_file=_text(environ, "CONSUL_CACERT", ca_file),
        ca_path=_text(environ, "CONSUL_CAPATH", ca_path),
        client_cert=certificate,
        client_key=key,
        tls_server_name=_text(environ, "CONSUL_TLS_SERVER_NAME", tls_server_name),
        namespace=_text(environ, "CONSUL_NAMESPACE", namespace),
        partition=_text(environ, "CONSUL_PARTITION", partition),
    )


def _address(environ: Mapping[str, str], http_addr: str | None, ssl: bool | None) -> AgentAddress:
    wants_tls = _flag(environ, "CONSUL_HTTP_SSL", ssl, default=False)
    if http_addr:
        return agent_address(http_addr, ssl=wants_tls, source="-http-addr")
    return agent_address(environ.get("CONSUL_HTTP_ADDR", ""), ssl=wants_tls)


def _token(environ: Mapping[str, str], token: str | None, token_file: str | None) -> tuple[Secret | None, str]:
    # The nearest wins: flag, file of a flag, variable, file of a variable. As in Consul's Go client
    # CONSUL_HTTP_TOKEN overrides the file of CONSUL_HTTP_TOKEN_FILE.
    if token:
        return Secret(token), ""
    if token_file:
        return None, token_file
    if environ.get("CONSUL_HTTP_TOKEN"):
        return Secret(environ["CONSUL_HTTP_TOKEN"]), ""
    return None, environ.get("CONSUL_HTTP_TOKEN_FILE", "")


def _text(environ: Mapping[str, str], name: str, flag: str | None) -> str:
    return flag if flag is not None else environ.get(name, "")


def _flag(environ: Mapping[str, str], name: str, flag: bool | None, *, default: bool) -> bool:
    text = environ.get(name, "")
    if flag is not None or not text:
        return default if flag is None else flag
    if text not in _TRUE | _FALSE:
        msg = f"{name}: expected true or false, found {text!r}"
        raise SettingError(msg)
    return text in _TRUE
