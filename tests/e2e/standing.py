"""The mesh that most tests share: four services on host a, one caller on host b."""

from __future__ import annotations

from tests.e2e.mesh import Member, Mesh, Service, upstream
from tests.e2e.namespaces import Namespace

WEB_PORT, DB_PORT, H2_PORT, RPC_PORT = 9101, 9102, 9103, 9104
GHOST_HTTP_PORT, GHOST_TCP_PORT, ABROAD_PORT = 9105, 9106, 9107


class Standing:
    """`caller` on host b reaches web (http), db (tcp), pages (http2) and rpc (grpc) on host a.

    Two of its upstreams have no instances, one is in a datacenter that does not exist.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.site = mesh.site
        mesh.set_protocol("ghost-http", "http")
        web = Service("web", "http", config={"appname_header": "X-Caller", "enable_forwardfor": True})
        others = (Service("db"), Service("pages", "http2"), Service("rpc", "grpc"))
        self.web, self.db, self.pages, self.rpc, self.caller = mesh.join(web, *others, _caller())

    @property
    def client(self) -> Namespace:
        """Where the caller's application is."""
        return self.caller.namespace

    def members(self) -> tuple[Member, ...]:
        return (self.web, self.db, self.pages, self.rpc, self.caller)


def _caller() -> Service:
    return Service(
        "caller",
        host="b",
        upstreams=(
            upstream("web", WEB_PORT),
            upstream("db", DB_PORT),
            upstream("pages", H2_PORT),
            upstream("rpc", RPC_PORT),
            upstream("ghost-http", GHOST_HTTP_PORT),
            upstream("ghost-tcp", GHOST_TCP_PORT),
            upstream("db", ABROAD_PORT, Datacenter="dc2"),
        ),
    )
