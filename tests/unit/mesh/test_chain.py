from dataclasses import replace

from hcc.mesh.chain import Chain, Node, NodeType, Route, Split, Target, start_target, targets_in_order

WEB = Target("web.default.default.dc1", "web", "dc1")
V2 = Target("v2.web.default.default.dc1", "web", "dc1", subset="v2")
RESOLVE_WEB = Node("resolver:web", NodeType.RESOLVER, target=WEB.id)
RESOLVE_V2 = Node("resolver:v2", NodeType.RESOLVER, target=V2.id)
SPLIT = Node("splitter:web", NodeType.SPLITTER, splits=(Split("resolver:web", 10.0), Split("resolver:v2", 90.0)))
ROUTE = Node("router:web", NodeType.ROUTER, routes=(Route("resolver:v2"), Route("resolver:web")))


def chain(start: str, *nodes: Node) -> Chain:
    return Chain("web", "dc1", "http", start, nodes, (V2, WEB))


def test_the_default_path_is_that_of_the_catch_all_route_and_of_the_heaviest_leg() -> None:
    assert start_target(chain("resolver:web", RESOLVE_WEB)) == WEB
    assert start_target(chain("router:web", ROUTE, RESOLVE_WEB, RESOLVE_V2)) == WEB
    assert start_target(chain("splitter:web", SPLIT, RESOLVE_WEB, RESOLVE_V2)) == V2


def test_targets_are_tried_in_the_order_of_the_resolvers_failover() -> None:
    resolver = replace(RESOLVE_WEB, failover=(V2.id, WEB.id))

    assert targets_in_order(chain("resolver:web", RESOLVE_WEB), RESOLVE_WEB) == (WEB,)
    assert targets_in_order(chain("resolver:web", resolver), resolver) == (WEB, V2)
