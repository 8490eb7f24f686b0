"""JWT in intentions: Consul says who may sign, HAProxy lets nobody on without a token that was checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.e2e.load import Load
from tests.e2e.standing import WEB_PORT, Standing
from tests.e2e.test_ask import asked
from tests.e2e.waiting import wait_until
from tests.tokens import ISSUER, entry, signer

pytestmark = pytest.mark.e2e
ES256, NEXT = signer("ES256", "first"), signer("ES256", "next")
DEMAND = {"Providers": [{"Name": "okta", "VerifyClaims": [{"Path": ["perms", "role"], "Value": "admin"}]}]}
ADMIN: dict[str, Any] = {"perms": {"role": "admin"}, "aud": ["web"]}


@contextmanager
def demanded(standing: Standing) -> Iterator[None]:
    """A token is demanded for /who while in the block."""
    server = standing.site.server
    permission = {"Action": "allow", "HTTP": {"PathPrefix": "/who"}, "JWT": DEMAND}
    rest = {"Action": "allow", "HTTP": {"PathPrefix": "/"}}
    source = {"Name": "caller", "Permissions": [permission, rest]}
    server.put("/v1/config", entry(ES256, Audiences=["web", "other"]))
    server.put("/v1/config", {"Kind": "service-intentions", "Name": "web", "Sources": [source]})
    try:
        yield
    finally:
        server.delete("/v1/config/service-intentions/web")
        server.delete("/v1/config/jwt-provider/okta")
        wait_until("no demand", lambda: status(standing, "/who") == 200)


# How long HAProxy waits for what hcc says of a token (`processing_timeout_ms` of hcc.haproxy.model).
QUESTION_S = 0.5


def status(standing: Standing, path: str, token: str = "") -> int:
    connection = standing.client.http(WEB_PORT)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def test_a_request_gets_on_with_a_good_token_and_keys_are_exchanged_without_a_reload(standing: Standing) -> None:
    sidecar = standing.web.sidecar
    good = ES256.token(**ADMIN)
    with demanded(standing):
        wait_until("the demand", lambda: status(standing, "/who") == 403)
        wait_until("the token to be good", lambda: status(standing, "/who", good) == 200)
        assert status(standing, "/who") == 403
        assert status(standing, "/seen") == 200
        assert status(standing, f"/who?access_token={good}") == 200
        for bad in (
            ES256.token(perms={"role": "user"}, aud="web"),
            ES256.token(perms={"role": ["admin"]}, aud="web"),
            ES256.token(**ADMIN | {"aud": "elsewhere"}),
            ES256.token(**ADMIN, exp=1),
            ES256.token(**ADMIN, iss=f"{ISSUER}x"),
            NEXT.token(**ADMIN),
            f"{good[:-4]}AAAA",
        ):
            assert status(standing, "/who", bad) == 403
        told = asked(standing.web, "explain", "--source", "caller", "--path", "/who")
        assert (told.returncode, "the token decides" in told.stdout.replace("\n", " ")) == (5, True)
        sidecar.wait_rest()
        worker = sidecar.worker_pid()
        standing.site.server.put("/v1/config", entry(NEXT))
        wait_until("the other key", lambda: status(standing, "/who", NEXT.token(**ADMIN)) == 200)
        assert status(standing, "/who", good) == 403
        assert sidecar.worker_pid() == worker, "a change of keys reloaded HAProxy"

        def is_told() -> bool:
            assert status(standing, "/who") == 403
            return "the token for GET /who is refused: okta: " in sidecar.log_text()

        # Ten denials are told in ten seconds; those of a slow start may have been these.
        wait_until("the reason", is_told, 25.0, 0.5)
        assert good.split(".")[2] not in sidecar.log_text()
        assert sidecar.metrics()['hcc_token_checks_total{verdict="good"}'] >= 3


def test_a_good_token_is_refused_at_no_time_while_what_is_demanded_changes(standing: Standing) -> None:
    server, sidecar = standing.site.server, standing.web.sidecar
    sidecar.wait_rest()
    good = ES256.token(**ADMIN)

    @contextmanager
    def client() -> Iterator[Callable[[], None]]:
        with closing(standing.client.http(WEB_PORT)) as connection:
            yield lambda: ask(connection)

    def ask(connection: HTTPConnection) -> None:
        began_s = time.monotonic()
        connection.request("GET", "/who", headers={"Authorization": f"Bearer {good}"})
        answer = connection.getresponse()
        answer.read()
        # HAProxy waits for hcc no longer than that, and a busy machine may stand still as long: that is no refusal.
        if answer.status == 403 and time.monotonic() - began_s >= QUESTION_S:
            late.append(answer.status)
            return
        assert answer.status == 200, answer.status

    late: list[int] = []
    server.put("/v1/config", entry(ES256))
    try:
        with Load(client, threads=3, pause_s=0.01) as load:
            for claims in ([], DEMAND["Providers"][0]["VerifyClaims"], []):
                jwt = {"Providers": [{"Name": "okta", "VerifyClaims": claims}]}
                permission = {"Action": "allow", "HTTP": {"PathPrefix": "/"}, "JWT": jwt}
                sources = [{"Name": "caller", "Permissions": [permission]}]
                server.put("/v1/config", {"Kind": "service-intentions", "Name": "web", "Sources": sources})
                user = ES256.token(perms={"role": "user"})
                expected = 403 if claims else 200
                wait_until("the demand", lambda: status(standing, "/who") == 403)
                wait_until("its claims", lambda: status(standing, "/who", user) == expected)  # noqa: B023
                load.go_on(50)
            server.delete("/v1/config/service-intentions/web")
            wait_until("no demand", lambda: status(standing, "/who") == 200)
            load.go_on(50)
        load.assert_clean()
        assert len(late) < load.ok / 10
    finally:
        server.delete("/v1/config/service-intentions/web")
        server.delete("/v1/config/jwt-provider/okta")


def test_a_token_of_a_provider_whose_keys_are_elsewhere_lets_nobody_in(standing: Standing) -> None:
    good = ES256.token(**ADMIN)
    with demanded(standing):
        wait_until("the demand", lambda: status(standing, "/who") == 403)
        wait_until("the token to be good", lambda: status(standing, "/who", good) == 200)
        remote = {"Remote": {"URI": "https://okta.test/keys"}}
        standing.site.server.put("/v1/config", entry(ES256) | {"JSONWebKeySet": remote})
        wait_until("nobody to get in", lambda: status(standing, "/who", good) == 403)
        told = asked(standing.web, "explain", "--source", "caller", "--path", "/who")
        assert (told.returncode, "keys on a server" in told.stdout) == (3, True)
        # Nobody is asked about tokens any more, which takes a reload.
        wait_until("others to get on", lambda: status(standing, "/seen") == 200)


def test_while_hcc_is_dead_no_token_is_good_enough_and_the_next_one_goes_on(standing: Standing) -> None:
    sidecar = standing.web.sidecar
    good = ES256.token(**ADMIN)
    with demanded(standing):
        wait_until("the demand", lambda: status(standing, "/who") == 403)
        wait_until("the token to be good", lambda: status(standing, "/who", good) == 200)
        sidecar.wait_rest()
        worker = sidecar.worker_pid()
        sidecar.kill()
        try:
            assert [status(standing, "/who", good), status(standing, "/seen")] == [403, 200]
        finally:
            sidecar.start()
        wait_until("the token to be good again", lambda: status(standing, "/who", good) == 200)
        assert status(standing, "/who") == 403
        sidecar.wait_ready()
        assert sidecar.worker_pid() == worker
