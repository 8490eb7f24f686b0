"""The status page as a document: what `tests/integration/test_status_page.py` then looks at in a browser."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hcc.actors.page import MAX_ENDPOINTS, headers, page, span
from hcc.actors.status import ServerState, Status
from tests.status_builders import NOW, endpoint_status, status, upstream_status

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' --> </style> {{ 7 * 7 }} \ud800"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Document(HTMLParser):
    """Checks nesting while it reads; keeps elements, the texts between them, and their attributes."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self.feed(body.decode())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
        else:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [
            value or "" for _, attributes in self.elements for name, value in attributes.items() if name == attribute
        ]


def words(value: Status) -> str:
    return re.sub(r"\s+", " ", Document(page(value)).text)


def test_everything_an_operator_asks_first_is_there() -> None:
    shown = words(status())
    for text in (
        "web-1",
        "sidecar of web in dc1, http on 10.0.0.9:21000, exposes 10.0.0.9:22900/up",
        "upstream db: its chain asks for more",
        "api http in dc1, 127.0.0.1:9191 1 of 2 up 3 open",
        "10.0.0.2:21000 critical maintenance 1 3 1 min 1 s ago",
        "not known yet",
        "spy deny by an earlier policy default policy - 1 5 s ago",
        "leaf web 2 d",
        "failed 1 min 30 s ago, 2 s: structure differs line 3: no",
        "endpoints db.dc2 failing never HTTP 500: no path to datacenter",
        "Admin running 1 min 2 1 0 RuntimeError: boom",
        "2.6.12, OpenSSL 3.0.17, process 4712, worker 58 min 20 s old, 5 of 500 connections",
    ):
        assert text in shown


def test_what_is_missing_comes_first_when_it_is_not_ready() -> None:
    lacking = replace(status().readiness, ready=False, missing=("leaf: none yet",))
    shown = words(replace(status(), readiness=lacking))
    assert "not ready" in shown
    assert shown.index("leaf: none yet") < shown.index("To look at") < shown.index("10.0.0.1:21000")


def test_a_hostile_name_stays_text_wherever_it_stands() -> None:
    shown = status()
    hostile = replace(
        shown,
        sidecar=replace(
            shown.sidecar, proxy_id=HOSTILE, service_id=HOSTILE, service=HOSTILE, datacenter=HOSTILE, exposed=(HOSTILE,)
        ),
        readiness=replace(shown.readiness, missing=(HOSTILE,), warnings=(HOSTILE,)),
        versions=replace(shown.versions, consul=HOSTILE, openssl=HOSTILE),
        upstreams=(replace(upstream_status(HOSTILE), listens=HOSTILE, protocol=HOSTILE, datacenter=HOSTILE),),
        callers=(replace(shown.callers[0], service=HOSTILE, reason=HOSTILE, verdict=HOSTILE),),
        certificates=(replace(shown.certificates[0], name=HOSTILE),),
        watches=(replace(shown.watches[0], name=HOSTILE, problem=HOSTILE),),
        actors=(replace(shown.actors[0], name=HOSTILE, last_error=HOSTILE),),
        plans=(replace(shown.plans[0], reasons=(HOSTILE,), operations=(HOSTILE,), failure=HOSTILE),),
    )

    document = Document(page(hostile))

    plain = {tag for tag, _ in Document(page(shown)).elements}
    assert {tag for tag, _ in document.elements} <= plain | {"section", "ul", "li", "p"}
    assert not {name for _, attributes in document.elements for name in attributes if name.startswith("on")}
    assert document.text.count("<script>alert(1)</script>") >= 15
    assert "49" not in document.text


def test_the_page_runs_and_loads_nothing() -> None:
    document = Document(page(status()))
    assert {tag for tag, _ in document.elements}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "form", "base"}
    )
    assert document.values("src") == []
    assert all(target.startswith(("#", "/")) and not target.startswith("//") for target in document.values("href"))
    assert "url(" not in document.style
    assert "@import" not in document.style
    assert document.values("style") == []


def test_the_policy_allows_just_the_style_that_is_in_the_page() -> None:
    policy = dict(headers())["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(Document(page(status())).style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_it_can_be_read_by_ear_and_walked_by_keyboard() -> None:
    document = Document(page(status()))
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in document.values("href") if target.startswith("#")} <= set(ids)
    assert set(document.values("aria-labelledby")) <= set(ids)
    tags = [tag for tag, _ in document.elements]
    assert tags.count("h1") == tags.count("main") == 1
    assert dict(document.elements)["html"] == {"lang": "en"}
    headings = [attributes for tag, attributes in document.elements if tag == "th"]
    assert headings
    assert all(attributes.get("scope") == "col" for attributes in headings)
    scrolling = [attributes for _, attributes in document.elements if attributes.get("class") == "scroll"]
    assert all(box["tabindex"] == "0" and box["aria-label"] and box["role"] == "region" for box in scrolling)


def test_of_many_endpoints_those_in_trouble_are_shown_and_the_page_stays_small() -> None:
    many = tuple(endpoint_status(number) for number in range(10_000))
    ill = endpoint_status(9_999, ServerState.DOWN, "critical")
    body = page(replace(status(), upstreams=(upstream_status("big", (*many[:-1], ill)),)))

    assert len(body) < 100_000
    shown = re.sub(r"\s+", " ", Document(body).text)
    assert "9999 of 10000 up" in shown
    assert f"{10_000 - MAX_ENDPOINTS} more endpoints are in the JSON" in shown
    assert shown.index(f"{ill.address}:21000 critical down") < shown.index("passing up")


def test_endpoints_that_stand_by_are_told_apart_and_not_missed() -> None:
    standing_by = endpoint_status(2, ServerState.MAINTENANCE, standby=True)

    shown = words(replace(status(), upstreams=(upstream_status("api", (standing_by, endpoint_status(1))),)))

    assert "1 of 1 up, 1 standby" in shown
    assert shown.index("10.0.0.1:21000 passing up") < shown.index("10.0.0.2:21000 passing standby")


def test_one_that_does_not_answer_is_told_with_what_was_found() -> None:
    silent = endpoint_status(2, ServerState.MAINTENANCE, silence="cannot be connected to within 3 s")

    shown = words(replace(status(), upstreams=(upstream_status("api", (silent, endpoint_status(1))),)))

    assert "10.0.0.2:21000 passing maintenance silent: cannot be connected to within 3 s" in shown


def test_an_empty_status_is_a_page_too() -> None:
    empty = replace(status(), upstreams=(), callers=(), certificates=(), watches=(), actors=(), plans=(), at=NOW)
    shown = words(empty)
    assert "None are registered." in shown
    assert "The root actor did not answer in time." in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0123, "12 ms"),
        (1, "1 s"),
        (59.6, "60 s"),
        (61, "1 min 1 s"),
        (7200, "2 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text
