from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jwt import PyJWK

from hcc.mesh.intentions import Action, Intention, demands_of
from hcc.mesh.permissions import JwtProvider, PathMatch, PathRule, Permission
from hcc.tokens.check import MAX_REMEMBERED, MAX_TOKEN_CHARACTERS, REMEMBER_S, Outcome, TokenChecker, _Remembered
from tests.tokens import ISSUER, Signer, entry, known, policy, segment, signer

OKTA = (JwtProvider("okta"),)
ES256 = signer("ES256", "main")


def now() -> int:
    return int(time.time())


class Clock:
    """A monotonic clock that goes on as a test says."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Asking:
    """A checker under a policy with one demand, and a way to ask it."""

    def __init__(self, *entries: dict[str, Any], jwt: tuple[JwtProvider, ...] = OKTA) -> None:
        asked = policy(Intention("web", Action.ALLOW, 9, jwt=jwt), known(*entries))
        self.clock = Clock()
        self.checker = TokenChecker(asked, clock=self.clock)
        (self.demand,) = demands_of(asked)

    def sent(self, sent: dict[str, str | int], now_s: float | None = None) -> Outcome:
        return self.checker.check(self.demand, sent, now() if now_s is None else now_s)

    def bearer(self, token: str, now_s: float | None = None) -> Outcome:
        return self.sent(bearer(token), now_s)


def bearer(token: str) -> dict[str, str | int]:
    return {"header.authorization": f"Bearer {token}", "headers.authorization": 1}


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256"]
)
def test_a_token_of_every_kind_of_key_is_good_and_one_of_another_such_key_is_not(algorithm: str) -> None:
    asking = Asking(entry(signer(algorithm)))
    assert asking.bearer(signer(algorithm).token()) == Outcome(True, strip=("authorization",))
    other = signer(algorithm).token().rpartition(".")[0] + "." + segment(b"\0" * 64)
    assert asking.bearer(other) == Outcome(False, "okta: the token has a signature that is not right")


def unsigned(**claims: Any) -> str:
    return f"{segment({'alg': 'none'})}.{segment({'iss': ISSUER, 'exp': now() + 60, **claims})}."


def with_hmac_of(key: bytes, algorithm: str = "HS256") -> str:
    text = f"{segment({'alg': algorithm, 'typ': 'JWT'})}.{segment({'iss': ISSUER, 'exp': now() + 60})}"
    return f"{text}.{segment(hmac.digest(key, text.encode(), 'sha256'))}"


def public_pem(of: Signer) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key: Any = PyJWK(of.jwk, of.algorithm).key
    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def tampered(token: str, **claims: Any) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{segment({'iss': ISSUER, 'exp': now() + 600, **claims})}.{signature}"


RS256 = signer("RS256", "rsa")
FORGED: dict[str, Callable[[], str]] = {
    "no algorithm": unsigned,
    "no algorithm, other case": lambda: unsigned().replace(segment({"alg": "none"}), segment({"alg": "nOnE"})),
    "no algorithm, kept signature": lambda: unsigned() + RS256.token().rpartition(".")[2],
    "HMAC with the public key as PEM": lambda: with_hmac_of(public_pem(RS256)),
    "HMAC with the public key as JWK": lambda: with_hmac_of(json.dumps(RS256.jwk).encode()),
    "HMAC with nothing": lambda: with_hmac_of(b""),
    "another key of the same name": lambda: Signer("RS256", "rsa").token(),
    "its own key in the header": lambda: Signer("RS256", "rsa").token(header={"jwk": Signer("RS256").jwk}),
    "a key on a server": lambda: Signer("RS256", "rsa").token(header={"jku": "http://127.0.0.1/", "x5u": "http://x"}),
    "another key's name": lambda: RS256.token(header={"kid": "main"}),
    "an unknown name": lambda: RS256.token(header={"kid": "other"}),
    "the name of a file": lambda: RS256.token(header={"kid": "../../dev/null"}),
    "claims exchanged": lambda: tampered(RS256.token(), role="admin"),
    "a critical header": lambda: RS256.token(header={"crit": ["exp"]}),
    "no base64": lambda: RS256.token(header={"b64": False, "crit": ["b64"]}),
    "expired": lambda: RS256.token(exp=now() - 40),
    "expired, no number": lambda: RS256.token(exp="tomorrow"),
    "expired, no finite number": lambda: RS256.token(exp=float("inf")),
    "not valid yet": lambda: RS256.token(nbf=now() + 60),
    "no issuer": lambda: RS256.token(iss=None),
    "another issuer": lambda: RS256.token(iss=f"{ISSUER}/"),
    "a list of issuers": lambda: f"{RS256.token().rpartition('.')[0]}.{segment([ISSUER])}",
    "empty": lambda: "",
    "dots": lambda: "..",
    "one part": lambda: "abc",
    "two parts": lambda: RS256.token().rpartition(".")[0],
    "four parts": lambda: f"{RS256.token()}.{segment({})}",
    "five parts, encrypted": lambda: f"{segment({'alg': 'RSA-OAEP', 'enc': 'A256GCM'})}.a.b.c.d",
    "not JSON": lambda: f"{segment(b'x')}.{segment(b'y')}.AAAA",
    "a list": lambda: f"{segment([1])}.{segment([1])}.AAAA",
    "deep": lambda: f"{segment(b'[' * 3000)}.{segment({})}.AAAA",
    "huge": lambda: RS256.token(much="x" * MAX_TOKEN_CHARACTERS),
    "not ASCII": lambda: f"{RS256.token()}\\xff",
    "two tokens": lambda: f"{RS256.token()},{RS256.token()}",
    "two tokens, a blank": lambda: f"{RS256.token()} {RS256.token()}",
}


@pytest.mark.parametrize("name", FORGED)
def test_no_forged_or_broken_token_is_good(name: str) -> None:
    asking = Asking(entry(RS256, ES256))
    token = FORGED[name]()
    outcome = asking.bearer(token)
    assert not outcome.good
    assert outcome.reason.startswith("okta: the")
    parts = [part for part in token.split(".") if len(part) > 3]
    assert not any(part in outcome.reason for part in parts)
    assert asking.bearer(RS256.token()).good


def test_a_key_without_a_name_may_have_signed_anything_and_one_that_is_none_keeps_no_other_from_it() -> None:
    nameless, broken = signer("ES256"), {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}
    odd = Signer("ES256")
    odd.jwk = broken
    asking = Asking(entry(odd, ES256, nameless))
    assert asking.bearer(nameless.token(header={"kid": "any"})).good
    assert asking.bearer(ES256.token()).good
    assert asking.bearer(ES256.token(header={"kid": ""})).good


def test_an_hmac_key_is_for_no_signature_of_a_key_pair() -> None:
    asking = Asking(entry(signer("HS256")))
    assert not asking.bearer(RS256.token(header={"kid": ""})).good
    assert not asking.bearer(with_hmac_of(b"another secret of thirty-two bytes")).good


def test_the_clock_may_differ_by_the_skew_of_the_entry() -> None:
    asking = Asking(entry(ES256))
    assert asking.bearer(ES256.token(exp=now() - 10)).good
    assert asking.bearer(ES256.token(nbf=now() + 10)).good
    assert asking.bearer(ES256.token(iat=now() + 3600, exp=None)).good
    assert asking.bearer(ES256.token(exp=10**400)).good
    strict = Asking(entry(ES256, ClockSkewSeconds=1))
    assert not strict.bearer(ES256.token(exp=now() - 10)).good
    assert not strict.bearer(ES256.token(nbf=now() + 30)).good


@pytest.mark.parametrize(
    ("audience", "good"), [("a", True), (["x", "b"], True), (["x"], False), ("ab", False), (None, False), ([], False)]
)
def test_one_of_the_audiences_must_be_the_tokens(audience: object, good: bool) -> None:
    assert Asking(entry(ES256, Audiences=["a", "b"])).bearer(ES256.token(aud=audience)).good is good
    assert Asking(entry(ES256)).bearer(ES256.token(aud="whoever")).good


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"role": "admin", "deep": {"er": "x"}}, True),
        ({"role": "admin", "deep": {"er": "x"}, "more": 1}, True),
        ({"role": "admin"}, False),
        ({"deep": {"er": "x"}}, False),
        ({"role": ["admin"], "deep": {"er": "x"}}, False),
        ({"role": "Admin", "deep": {"er": "x"}}, False),
        ({"role": "admin", "deep": {"er": ["x"]}}, False),
        ({"role": "admin", "deep": "x"}, False),
        ({"role": "admin", "deep.er": "x"}, False),
        ({"role": True, "deep": {"er": "x"}}, False),
    ],
)
def test_all_claims_must_be_there_as_texts(claims: dict[str, Any], good: bool) -> None:
    demanded = JwtProvider("okta", ((("role",), "admin"), (("deep", "er"), "x")))
    assert Asking(entry(ES256), jwt=(demanded,)).bearer(ES256.token(**claims)).good is good


@pytest.mark.parametrize(("level", "good"), [("5", True), (5, False), (5.0, False), (["5"], False)])
def test_a_claim_that_only_looks_like_the_text_is_not_it(level: object, good: bool) -> None:
    demanded = JwtProvider("okta", ((("level",), "5"),))
    assert Asking(entry(ES256), jwt=(demanded,)).bearer(ES256.token(level=level)).good is good


def test_of_several_providers_one_is_enough_but_each_demand_needs_its_own() -> None:
    far = entry(RS256, name="far", Issuer="far", Locations=[{"Header": {"Name": "X-Far", "Forward": True}}])
    either = Asking(far, entry(ES256), jwt=(JwtProvider("far"), JwtProvider("okta")))
    assert either.bearer(ES256.token()).good
    by_far = either.sent({"header.x-far": RS256.token(iss="far"), "headers.x-far": 1})
    assert by_far == Outcome(True)
    none = either.bearer(RS256.token(iss="far"))
    assert none.reason.startswith("far: there is no token; okta: the token ")
    asked = policy(Intention("web", Action.ALLOW, 9, jwt=OKTA), known(far, entry(ES256)))
    assert not TokenChecker(asked).check("token-of-nobody", bearer(ES256.token()), now()).good


@pytest.mark.parametrize(
    ("sent", "good"),
    [
        ({"header.authorization": "Bearer {}", "headers.authorization": 1}, True),
        ({"header.authorization": "Bearer  {}", "headers.authorization": 1}, True),
        ({"header.authorization": "bearer {}", "headers.authorization": 1}, False),
        ({"header.authorization": "{}", "headers.authorization": 1}, False),
        ({"header.authorization": "Basic {}", "headers.authorization": 1}, False),
        ({"header.authorization": "Bearer {}", "headers.authorization": 2}, False),
        ({"header.authorization": "Bearer {}"}, False),
        ({"query": "a=b&access_token={}"}, True),
        ({"query": "access_token={}&access_token=x"}, False),
        ({"query": "access_token={}&access%5ftoken=x"}, False),
        ({"query": "access_token=&access_token={}"}, False),
        ({"query": "access_token={}x"}, False),
        ({"query": "token={}"}, False),
        ({"query": "access_token={}", "header.authorization": "Bearer {}", "headers.authorization": 1}, True),
        ({"query": "access_token=x.y.z", "header.authorization": "Bearer {}", "headers.authorization": 1}, False),
        ({"query": "access_token={}", "header.authorization": "Bearer {}", "headers.authorization": 2}, False),
        ({"query": "a;access_token=x&access_token={}"}, False),
        ({"query": "a;access_token={}"}, False),
        ({"query": "a;b&access_token={}"}, True),
        ({"query": "", "header.cookie": "access_token={}", "headers.cookie": 1}, False),
        ({}, False),
    ],
)
def test_a_token_is_looked_for_where_it_usually_is(sent: dict[str, Any], good: bool) -> None:
    token = ES256.token()
    filled = {name: value.format(token) if isinstance(value, str) else value for name, value in sent.items()}
    outcome = Asking(entry(ES256)).sent(filled)
    assert outcome.good is good
    assert outcome.strip == (("authorization",) if good and "header.authorization" in sent else ())


def test_a_token_is_looked_for_where_the_entry_says_and_nowhere_else() -> None:
    places = [{"Header": {"Name": "X-Token"}}, {"Cookie": {"Name": "jwt"}}, {"QueryParam": {"Name": "t"}}]
    asking = Asking(entry(ES256, Locations=places))
    token = ES256.token()
    assert asking.sent({"header.x-token": token, "headers.x-token": 1}) == Outcome(True, strip=("x-token",))
    assert asking.sent({"header.cookie": f"jwt={token}", "headers.cookie": 1}) == Outcome(True)
    assert asking.sent({"query": f"t={token}"}) == Outcome(True)
    assert not asking.sent({"header.cookie": f"jwt={token}", "headers.cookie": 2}).good
    assert not asking.bearer(token).good


@pytest.mark.parametrize(
    ("cookies", "good"),
    [
        ("a=b; jwt={}; c=d", True),
        ("xjwt=x; a=jwt=x; jwt ={} ;b", True),
        ("xjwt={}; JWT={}", False),
        ("jwt=; jwt={}", False),
        ('a="; jwt=x; b="; jwt={}', False),
        ("a=1,jwt=x; jwt={}", False),
        ("a=1 jwt=x; jwt={}", False),
        ("a=1,jwt={}", False),
    ],
)
def test_a_cookie_that_not_every_reader_finds_is_refused(cookies: str, good: bool) -> None:
    asking = Asking(entry(ES256, Locations=[{"Cookie": {"Name": "jwt"}}]))
    line = cookies.replace("{}", ES256.token())
    assert asking.sent({"header.cookie": line, "headers.cookie": 1}).good is good


@pytest.mark.parametrize(
    ("authorization", "good"),
    [
        ("", True),
        ("Basic dTpw", True),
        ("bearer x", False),
        ("Bearer\tx", False),
        (" \x0bBearer x", False),
        ("x.y.z", False),
        ("Token x.y.", False),
    ],
)
def test_a_good_token_does_not_pass_another_one_through(authorization: str, good: bool) -> None:
    sent = {"header.authorization": authorization, "query": f"access_token={ES256.token()}"}
    assert Asking(entry(ES256)).sent({**sent, "headers.authorization": 1}).good is good


def test_a_good_token_is_not_checked_again_before_it_expires_or_the_policy_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking = Asking(entry(ES256))
    start = now()
    token = ES256.token(exp=start + 100)
    assert asking.bearer(token).good
    checked: list[object] = []

    def check(*_: object) -> None:
        checked.append(_)
        raise ValueError

    monkeypatch.setattr("hcc.tokens.check._decoded", check)
    assert asking.bearer(token).good
    assert asking.bearer(token, start + 99.0).good
    assert not checked
    assert not asking.bearer(token, start + 101.0).good
    assert not asking.bearer(token + "x").good
    assert not Asking(entry(ES256)).bearer(token).good
    assert len(checked) == 2


def test_what_is_remembered_is_bounded() -> None:
    asking = Asking(entry(ES256, Locations=[{"QueryParam": {"Name": "t"}}]))
    token = ES256.token()
    for number in range(MAX_REMEMBERED + 10):
        asking.checker._remember(f"{number}".encode(), _Remembered(Outcome(True), 0.0, 0.0, 0.0))
    assert asking.sent({"query": f"t={token}"}).good
    assert len(asking.checker._remembered) == MAX_REMEMBERED


def both_and_one() -> tuple[TokenChecker, str, str]:
    """A checker that knows a demand of two tokens, and one of the first of them alone."""
    far = entry(RS256, name="far", Issuer="far", Locations=[{"Header": {"Name": "X-Far"}}])
    pay = Permission(True, PathRule(PathMatch.PREFIX, "/pay"), jwt=(JwtProvider("far"),))
    rest = Permission(True, PathRule(PathMatch.PREFIX, "/"))
    asked = policy(Intention("web", Action.PERMISSIONS, 9, (pay, rest), jwt=OKTA), known(far, entry(ES256)))
    by_size = {len(demand.all_of): name for name, demand in demands_of(asked).items()}
    return TokenChecker(asked), by_size[2], by_size[1]


def of_far(**claims: Any) -> dict[str, str | int]:
    return {"header.x-far": RS256.token(iss="far", **claims), "headers.x-far": 1}


def test_where_two_tokens_are_demanded_one_of_them_is_not_enough() -> None:
    checker, both, _ = both_and_one()
    okta, far = bearer(ES256.token()), of_far()
    assert not checker.check(both, okta, now()).good
    assert not checker.check(both, far, now()).good
    assert checker.check(both, okta | far, now()) == Outcome(True, strip=("authorization", "x-far"))


def test_what_was_good_for_one_demand_is_not_remembered_for_another() -> None:
    checker, both, one = both_and_one()
    okta = bearer(ES256.token())
    assert checker.check(one, okta, now()).good
    assert not checker.check(both, okta, now()).good


def test_two_good_tokens_are_remembered_until_the_first_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    checker, both, _ = both_and_one()
    start = now()
    sent = bearer(ES256.token(exp=start + 100)) | of_far(exp=start + 50)
    assert checker.check(both, sent, start).good

    def check(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("hcc.tokens.check._decoded", check)
    assert checker.check(both, sent, start + 49.0).good
    assert not checker.check(both, sent, start + 51.0).good


def test_a_token_that_lives_long_is_checked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asking, start = Asking(entry(ES256)), now()
    token = ES256.token(exp=start + 86_400)
    assert asking.bearer(token, start).good

    def check(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("hcc.tokens.check._decoded", check)
    asking.clock.now_s = REMEMBER_S - 1
    assert asking.bearer(token, start + REMEMBER_S - 1).good
    asking.clock.now_s = REMEMBER_S
    # However the wall clock was set meanwhile.
    for wall_s in (start + REMEMBER_S, start + 1, start):
        assert not asking.bearer(token, wall_s).good


def test_a_token_is_checked_again_where_the_clock_was_set_back_as_it_may_not_be_valid_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking, start = Asking(entry(ES256)), now()
    token = ES256.token(nbf=start, exp=start + 86_400)
    assert asking.bearer(token, start).good

    def check(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("hcc.tokens.check._decoded", check)
    assert asking.bearer(token, start).good
    assert not asking.bearer(token, start - 1).good


@pytest.mark.parametrize("exp", [None, 10**400], ids=["none", "far"])
def test_a_token_that_never_expires_is_remembered_as_long_as_any(
    monkeypatch: pytest.MonkeyPatch, exp: int | None
) -> None:
    asking, start = Asking(entry(ES256)), now()
    token = ES256.token(exp=exp)
    assert asking.bearer(token, start).good

    def check(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("hcc.tokens.check._decoded", check)
    asking.clock.now_s = REMEMBER_S - 1
    assert asking.bearer(token, start + 86_400).good
    asking.clock.now_s = REMEMBER_S
    assert not asking.bearer(token, start).good


ADMIN = Intention("web", Action.ALLOW, 9, jwt=(JwtProvider("okta", ((("role",), "admin"),)),))
PLAIN = Intention("web", Action.ALLOW, 9, jwt=OKTA)
NO_TOKEN = Intention("web", Action.ALLOW, 9)


def test_what_was_demanded_before_counts_a_moment_longer() -> None:
    before = policy(ADMIN, known(entry(ES256)))
    (demand,) = demands_of(before)
    admin, user = bearer(ES256.token(role="admin")), bearer(ES256.token(role="user"))
    # None: who signs tokens is not asked for where no intention demands any.
    for after in (policy(PLAIN, before.providers or known()), replace(policy(NO_TOKEN, known()), providers=None)):
        clock = Clock()
        checker = TokenChecker(after, before, 5.0, clock)
        assert checker.knows(demand)
        assert checker.check(demand, admin, now()).good
        assert not checker.check(demand, user, now()).good
        clock.now_s = 4.9
        assert checker.check(demand, admin, now() + 6.0).good
        clock.now_s = 5.0
        # However the wall clock was set meanwhile.
        for wall_s in (now(), now() - 60, now() + 6):
            assert not checker.check(demand, admin, wall_s).good


def test_what_was_demanded_before_is_checked_by_the_keys_of_now() -> None:
    before = policy(ADMIN, known(entry(ES256)))
    (demand,) = demands_of(before)
    checker = TokenChecker(policy(PLAIN, known(entry(signer("ES256", "next")))), before, earlier_s=5.0)
    assert not checker.check(demand, bearer(ES256.token(role="admin")), now()).good
    gone = TokenChecker(policy(NO_TOKEN, known()), before, earlier_s=5.0)
    assert not gone.check(demand, bearer(ES256.token(role="admin")), now()).good


def test_two_good_tokens_of_one_provider_are_not_one() -> None:
    asking = Asking(entry(ES256))
    sent = bearer(ES256.token(role="a")) | {"query": f"access_token={ES256.token(role='b')}"}
    assert asking.sent(sent) == Outcome(False, "okta: there is more than one token")


def test_a_key_is_used_with_the_algorithm_that_it_names_alone() -> None:
    pinned = Signer("RS256", "pinned")
    pinned.jwk["alg"] = "RS256"
    asking = Asking(entry(pinned))
    assert asking.bearer(pinned.token()).good
    pinned.algorithm = "PS256"
    assert not asking.bearer(pinned.token()).good
