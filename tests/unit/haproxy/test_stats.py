import pytest

from hcc.haproxy.owners import Owners, caller_of
from hcc.haproxy.stats import RowKind, StatsError, parse_stats
from hcc.mesh.chain import Split
from tests.builders import resolver, routed_chain, routed_state, upstream, upstream_state

INFO = "Name: HAProxy\nVersion: 2.6.12\nUptime_sec: 4\nMaxconn: 100\nCurrConns: 3\nCumConns: 12\nIdle_pct: 87\n\n"
COLUMNS = (
    "# pxname,svname,scur,stot,bin,bout,cli_abrt,econ,eresp,wretr,wredis,"
    "status,act,type,hrsp_2xx,conn_tot,req_tot,ctime,addr,"
)
TEXT = f"""{INFO}{COLUMNS}
up:web:9191,FRONTEND,2,9,100,2000,,,,,,OPEN,,0,8,7,11,,,
up:web:9191:to,BACKEND,2,9,100,2000,7,1,2,3,4,UP,5,1,8,,,12,,

{COLUMNS}
app,shop,1,4,10,20,0,0,0,0,0,no check,1,2,4,,,,127.0.0.1:80,

No such proxy.

"""


def test_several_answers_together_are_read_as_one() -> None:
    stats = parse_stats(TEXT)

    assert (stats.process.connections, stats.process.max_connections, stats.process.idle) == (3, 100, 0.87)
    front, back, server = stats.rows
    assert (front.kind, front.sessions, front.requests, dict(front.responses)["2xx"]) == (RowKind.FRONTEND, 7, 11, 8)
    assert (back.connect_errors, back.response_errors, back.retries, back.redispatches) == (1, 2, 3, 4)
    assert back.client_aborts == 7
    assert (back.active_servers, back.connect_average_s, back.response_average_s) == (5, 0.012, None)
    assert (server.server, server.address, server.status, server.sessions) == ("shop", "127.0.0.1:80", "no check", 4)


@pytest.mark.parametrize("text", ["", "Permission denied\n", TEXT.replace(",2,9,", ",2,many,"), TEXT[len(INFO) :]])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(StatsError, match="expected statistics of HAProxy"):
        parse_stats(text)


def test_rows_have_owners_by_name() -> None:
    web, odd = upstream_state(upstream("web")), upstream_state(upstream("to:to", 9192))
    owners = Owners((web, odd))

    assert owners.of("up:web:9191") is web
    assert owners.of("up:web:9191:to") is web
    assert owners.of("up:web:9191:to:web.default.dc1") is web
    assert owners.of("up:to::3Ato:9192:to:a::2Fb") is odd
    assert owners.of("up:web:9193") is None
    assert owners.of("public") is None


def test_a_backend_has_endpoints_of_its_leg_or_of_any_where_it_is_none_of_them() -> None:
    split = routed_chain(splits=(Split("v1", 90.0), Split("v2", 10.0)), legs=(resolver("v1"), resolver("v2")))
    owners = Owners((routed_state(split, {}, upstream("web")), upstream_state(upstream("api", 9192))))
    both = {"up:web:9191:to:v1", "up:web:9191:to:v2"}

    assert {name: leg.name for name, leg in owners.legs("up:web:9191:to:v2").items()} == {"up:web:9191:to:v2": "v2"}
    assert set(owners.legs("up:web:9191:to")) == both
    assert set(owners.legs("up:web:9191:to:v3")) == both
    assert set(owners.legs("up:api:9192:to")) == {"up:api:9192:to"}
    assert owners.legs("up:shop:9193:to") == {}


def test_a_line_of_the_local_backend_is_a_callers_but_for_the_applications_own() -> None:
    server = parse_stats(TEXT).rows[2]
    assert caller_of(server) == "shop"
    assert caller_of(parse_stats(TEXT.replace("app,shop,", "app,app,")).rows[2]) == ""
    assert caller_of(parse_stats(TEXT).rows[0]) == ""
