"""Keys and tokens (JWT) of a token provider, good ones and odd ones."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from hcc.consul.token_providers import token_providers
from hcc.mesh.intentions import Intention, Policy
from hcc.mesh.token_providers import TokenProviders

ISSUER = "https://okta.test"


class Signer:
    """A key pair with its public half as a JWK."""

    def __init__(self, algorithm: str, kid: str = "") -> None:
        self.algorithm = algorithm
        self.kid = kid
        self._private = _private_key(algorithm)
        public = self._private if isinstance(self._private, bytes) else self._private.public_key()
        to_jwk: Any = jwt.get_algorithm_by_name(algorithm)
        self.jwk: dict[str, Any] = to_jwk.to_jwk(public, as_dict=True)
        self.jwk.pop("key_ops", None)
        if kid:
            self.jwk["kid"] = kid

    def token(self, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token with these claims beside the issuer and ten minutes; None takes one away."""
        whole = {"iss": ISSUER, "exp": int(time.time()) + 600, **claims}
        named = {"kid": self.kid} if self.kid else {}
        return jwt.encode(
            {name: value for name, value in whole.items() if value is not None},
            self._private,
            self.algorithm,
            {**named, **(header or {})},
        )


def _private_key(algorithm: str) -> Any:
    if algorithm.startswith("HS"):
        return b"0123456789abcdef" * 4
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    curve = curves.get(algorithm)
    return ec.generate_private_key(curve) if curve else rsa.generate_private_key(65537, 2048)


@cache
def signer(algorithm: str, kid: str = "") -> Signer:
    """One for the whole run; RSA keys take their time."""
    return Signer(algorithm, kid)


def entry(*signers: Signer, name: str = "okta", **fields: Any) -> dict[str, Any]:
    """A `jwt-provider` entry with these keys."""
    keys = json.dumps({"keys": [one.jwk for one in signers]})
    local = {"JWKS": base64.b64encode(keys.encode()).decode()}
    return {"Kind": "jwt-provider", "Name": name, "Issuer": ISSUER, "JSONWebKeySet": {"Local": local}, **fields}


def known(*entries: dict[str, Any]) -> TokenProviders:
    """The providers as Consul would tell them."""
    return token_providers(list(entries))


def policy(intention: Intention, providers: TokenProviders) -> Policy:
    """One of an http service, that denies by default."""
    return Policy("db", "td", (intention,), False, 1, http=True, providers=providers)


def segment(value: object) -> str:
    """A part of a token: JSON in base64url."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
