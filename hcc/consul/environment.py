"""How to reach Consul, as a value; `hcc.cli` finds out what the operator chose."""

from __future__ import annotations

from dataclasses import dataclass

from hcc.consul.address import AgentAddress, agent_address
from hcc.errors import SettingError
from hcc.mesh.secret import Secret
from hcc.settings import is_host_name


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


def consul_settings(  # noqa: PLR0913 - one keyword for each setting
    *,
    http_addr: str = "",
    http_addr_source: str = "CONSUL_HTTP_ADDR",
    token: str = "",
    token_file: str = "",
    auth: str = "",
    ssl: bool = False,
    ssl_verify: bool = True,
    ca_file: str = "",
    ca_path: str = "",
    client_cert: str = "",
    client_key: str = "",
    tls_server_name: str = "",
    namespace: str = "",
    partition: str = "",
) -> ConsulSettings:
    """The settings that the operator's choices make; a token given as such wins over its file.

    `http_addr_source` is the flag, variable or key that `http_addr` came from, for messages.

    Raises:
        SettingError: an address or a name that cannot be used, a certificate without its key, or a token that is none.
    """
    if bool(client_cert) != bool(client_key):
        missing, given = ("key", "certificate") if client_cert else ("certificate", "key")
        msg = (
            f"expected a client certificate and its key together (--client-cert, --client-key), "
            f"found the {given} alone; give the {missing} too"
        )
        raise SettingError(msg)
    if not is_host_name(tls_server_name):
        raise SettingError(f"expected --tls-server-name to be the name of a host, found {tls_server_name!r}")
    for flag, name in (("--namespace", namespace), ("--partition", partition)):
        if not name.isprintable():
            raise SettingError(f"expected {flag} to be a name, found {name!r}")
    return ConsulSettings(
        address=agent_address(http_addr, ssl=ssl, source=http_addr_source),
        token=checked_token(token, "ACL token") if token.strip() else None,
        token_file="" if token.strip() else token_file,
        auth=Secret(auth) if auth else None,
        ssl_verify=ssl_verify,
        ca_file=ca_file,
        ca_path=ca_path,
        client_cert=client_cert,
        client_key=client_key,
        tls_server_name=tls_server_name,
        namespace=namespace,
        partition=partition,
    )


def checked_token(text: str, source: str) -> Secret:
    """The token that a text is, without the blanks and line ends around it, as `echo` leaves one.

    `source` is said in the message; the token itself never is.

    Raises:
        SettingError: it is empty, or more than one word of printable ASCII, which alone can go into a header.
    """
    token = text.strip()
    if not token.isascii():
        raise SettingError(f"{source}: expected one token, found other characters than ASCII")
    if not token or not token.isprintable() or " " in token:
        raise SettingError(f"{source}: expected one token, found {'more' if token else 'nothing'}")
    return Secret(token)
