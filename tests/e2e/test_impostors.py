"""Another service of the mesh, with a valid certificate of its own, where an instance of an upstream should be."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.clients import Reply, fresh_requests, http_get, tcp_ask, tcp_requests
from tests.e2e.impostor import NAME, Impostor
from tests.e2e.load import Load
from tests.e2e.mesh import Member, Mesh, Service, upstream
from tests.e2e.namespaces import Namespace
from tests.e2e.versions import on_2_8
from tests.e2e.waiting import wait_until

pytestmark = pytest.mark.e2e
WEB_PORT, DB_PORT = 9801, 9802
on_several = pytest.mark.parametrize("haproxy_version", ["2.2", "2.6", "2.8", "3.2"], indirect=True)
REFUSED = 'hcc_refused_endpoints{reason="impostor"}'


def joined(mesh: Mesh, *flags: str) -> Member:
    """An http service and a tcp service, and their caller, with these flags."""
    services = (Service("iweb", "http"), Service("idb"))
    calls = Service("icaller", host="b", upstreams=(upstream("iweb", WEB_PORT), upstream("idb", DB_PORT)))
    mesh.join(*services)
    (caller,) = mesh.join(calls, flags=flags)
    wait_until("http to be answered", lambda: http_get(caller.namespace, WEB_PORT).status == 200)
    wait_until("tcp to be answered", lambda: tcp_ask(caller.namespace, DB_PORT))
    return caller


@contextlib.contextmanager
def posing(mesh: Mesh, as_service: str, *, http: bool, first: str) -> Iterator[Impostor]:
    """A server that is registered as one more instance of a service, and shows the certificate of `first`."""
    number = mesh.site.number()
    agent = mesh.site.server
    directory = mesh.site.directory / f"impostor-{number}"
    directory.mkdir()
    with Impostor(agent, 24000 + number, directory, http=http) as impostor:
        impostor.become(first)
        try:
            impostor.pose_as(as_service, f"{as_service}-{number}")
            yield impostor
        finally:
            agent.deregister(f"{as_service}-{number}")


def wait_refused(caller: Member, number: int) -> None:
    def refused() -> bool:
        metrics = caller.sidecar.metrics()
        assert metrics.get(REFUSED) == number, {name: value for name, value in metrics.items() if "endpoints" in name}
        return True

    wait_until(f"{number} impostors to be refused", refused, 20)


def endpoints(caller: Member) -> dict[tuple[str, int], dict[str, str]]:
    """Address and port to what the status says of each endpoint."""
    status = json.loads(caller.sidecar.fetch("/api/v1/status")[1])
    return {(one["address"], one["port"]): one for up in status["upstreams"] for one in up["endpoints"]}


def loads(client: Namespace) -> tuple[Load, Load]:
    """Of both services; anything but an answer of the honest instances fails."""
    return Load(fresh_requests(client, WEB_PORT, "iweb")), Load(tcp_requests(client, DB_PORT, "idb"))


@on_several
def test_an_impostor_is_sent_nothing_while_honest_instances_serve(mesh: Mesh) -> None:
    caller = joined(mesh)
    with ExitStack() as stack:
        under_load = [stack.enter_context(load) for load in loads(caller.namespace)]
        web = stack.enter_context(posing(mesh, "iweb", http=True, first="ievil"))
        db = stack.enter_context(posing(mesh, "idb", http=False, first="ievil"))
        wait_refused(caller, 2)
        for load in under_load:
            load.go_on(30)
            assert not load.failed, load.failed
        shown = endpoints(caller)[web.agent.namespace.address, web.port]
        assert (shown["identity"], shown["state"]) == ("refused", "maintenance")
        assert "/svc/iweb, found spiffe://" in shown["identity_problem"]
        assert "/svc/ievil" in shown["identity_problem"]
        wait_until("both in the log", lambda: caller.sidecar.log_text().count("is another service") >= 2)
        assert caller.sidecar.log_text().count("is another service") == 2
        assert "/svc/ievil" in caller.sidecar.command("status").stdout
        assert web.heard == b""
        assert db.heard == b""


@on_several
def test_an_admitted_address_that_another_service_takes_over_is_cut_and_then_out(mesh: Mesh) -> None:
    caller = joined(mesh)
    client = caller.namespace
    with (
        posing(mesh, "iweb", http=True, first="iweb") as web,
        posing(mesh, "idb", http=False, first="idb") as db,
    ):
        wait_until("it to answer http", lambda: http_get(client, WEB_PORT).text == NAME)
        wait_until("it to answer tcp", lambda: tcp_ask(client, DB_PORT) == NAME)
        web.become("ievil")
        db.become("ievil")
        wait_until("http to be cut", lambda: _no_lie(http_get(client, WEB_PORT)).status == 502)
        wait_until("tcp to be cut", lambda: _tcp(client) == "cut")

        wait_refused(caller, 2)

        web.heard = db.heard = b""
        for load in loads(client):
            with load:
                load.go_on(20)
            assert not load.failed, load.failed
        assert (web.heard, db.heard) == (b"", b"")
        denied = {name: value for name, value in caller.sidecar.metrics().items() if "denied_responses" in name}
        assert len([value for value in denied.values() if value > 0]) == 2, denied
        wait_until("the cut in the log", lambda: "answers were cut" in caller.sidecar.log_text())
        # And back.
        web.become("iweb")
        # The longer it was refused, the later it is probed again.
        wait_until("it to serve again", lambda: http_get(client, WEB_PORT).text == NAME, 60)


@pytest.mark.parametrize("haproxy_version", ["2.2", "3.2"], indirect=True)
def test_one_that_took_over_an_admitted_address_and_hangs_up_on_probes_is_out_by_its_answers(mesh: Mesh) -> None:
    caller = joined(mesh)
    client = caller.namespace
    with posing(mesh, "iweb", http=True, first="iweb") as web:
        wait_until("it to answer http", lambda: http_get(client, WEB_PORT).text == NAME)
        web.shy = True
        web.become("ievil")
        wait_until("http to be cut", lambda: _no_lie(http_get(client, WEB_PORT)).status == 502)

        wait_refused(caller, 1)

        web.heard = b""
        with loads(client)[0] as load:
            load.go_on(20)
        assert not load.failed, load.failed
        assert web.heard == b""
        problem = endpoints(caller)[web.agent.namespace.address, web.port]["identity_problem"]
        assert problem.startswith("its answers were cut, and it answers no probe: "), problem
        # And back.
        web.shy = False
        web.become("iweb")
        wait_until("it to serve again", lambda: http_get(client, WEB_PORT).text == NAME, 60)


@on_2_8
def test_with_the_response_check_alone_an_impostors_answer_never_arrives(mesh: Mesh) -> None:
    caller = joined(mesh, "--verify-upstream", "response")
    client = caller.namespace
    with posing(mesh, "iweb", http=True, first="ievil"), posing(mesh, "idb", http=False, first="ievil"):
        web, db = set(), set()

        def all_seen() -> bool:
            reply = http_get(client, WEB_PORT)
            web.add(reply.text if reply.status == 200 else str(reply.status))
            db.add(_tcp(client))
            return len(web) > 1 and len(db) > 1

        wait_until("honest answers and cut ones", all_seen)
        assert web == {"iweb", "502"}
        assert db == {"idb", "cut"}
        assert REFUSED not in caller.sidecar.metrics()


@on_2_8
def test_an_hcc_that_was_killed_goes_on_with_those_that_it_had_admitted(mesh: Mesh) -> None:
    caller = joined(mesh)
    with ExitStack() as stack:
        under_load = [stack.enter_context(load) for load in loads(caller.namespace)]
        kept = caller.sidecar.state_dir / "peers.json"
        wait_until("the admitted to be kept", lambda: len(json.loads(kept.read_text())["admitted"]) == 2)
        assert kept.stat().st_mode & 0o777 == 0o600
        caller.sidecar.kill()
        caller.sidecar.start()
        caller.sidecar.wait_ready()
        for actor in ("Verifier", "ConfigReconciler", "Verifier"):
            caller.sidecar.restart(actor)
        for load in under_load:
            load.go_on(50)
            assert not load.failed, load.failed


def _no_lie(reply: Reply) -> Reply:
    """The answer; with 502 its text must not be the impostor's."""
    assert reply.status == 200 or NAME not in reply.text
    return reply


def _tcp(client: Namespace) -> str:
    """The answer over tcp, `cut` without one."""
    try:
        return tcp_ask(client, DB_PORT)
    except ConnectionError:
        return "cut"
