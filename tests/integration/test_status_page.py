"""The status page as a person meets it: in a real browser, served by the real web server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hcc.actors.page import headers, page
from hcc.actors.web import Response, serve_tcp
from hcc.settings import ListenAddress
from tests.chromium import Chromium
from tests.ports import free_port
from tests.status_builders import endpoint_status, status, upstream_status

pytestmark = pytest.mark.integration

HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
TAB, ENTER = ("Tab", 9), ("Enter", 13)
# W3C, WCAG 2.2, contrast ratio; 4.5 is level AA for text of normal size.
ENOUGH = 4.5
CONTRASTS = """
(() => {
  const channels = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const c = channels(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walk.nextNode();) {
    const text = walk.currentNode.data.trim(), node = walk.currentNode.parentElement;
    if (!text) continue;
    const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), text.slice(0, 40)]);
  }
  return found;
})()
"""


def answer(method: str, path: str, query: str, accept: str) -> Response:
    if path != "/":
        return Response(404, b"nothing\n")
    shown = status()
    hostile = replace(
        shown,
        sidecar=replace(shown.sidecar, service_id=HOSTILE),
        readiness=replace(shown.readiness, ready=False, missing=("leaf: none yet",)),
        upstreams=(upstream_status(HOSTILE), upstream_status("big", tuple(map(endpoint_status, range(150))))),
    )
    return Response(200, page(hostile), "text/html; charset=utf-8", headers())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    server = serve_tcp(ListenAddress("127.0.0.1", port), answer)
    yield f"http://127.0.0.1:{port}/"
    server.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_light_and_in_dark(browser: Chromium, url: str, scheme: str) -> None:
    browser.colours(scheme)
    browser.open(url)

    found: list[Any] = browser.evaluate(CONTRASTS)

    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(18, 22, 28)"}[scheme]
    assert len(found) > 100
    assert [one for one in found if one[0] < ENOUGH] == []


def test_a_hostile_name_runs_nothing_and_the_page_breaks_no_rule_of_its_own(browser: Chromium, url: str) -> None:
    browser.open(url)
    assert "owned" not in browser.evaluate("document.title").split(":")
    assert browser.evaluate("document.title").startswith("<script>")
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    violations = [line for line in browser.log if "Content Security Policy" in line]
    assert violations == []


def test_whatever_got_into_the_page_nevertheless_the_browser_would_not_run(browser: Chromium, url: str) -> None:
    browser.open(url)
    try:
        browser.evaluate(
            "void document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')"
        )
        browser.evaluate(
            "void document.body.append(Object.assign(document.createElement('script'), {text: 'document.title=2'}))"
        )
        assert browser.evaluate("document.title").startswith("<script>")
        assert any("Content Security Policy" in line for line in browser.log)
    finally:
        browser.log.clear()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Chromium, url: str) -> None:
    browser.open(url)
    browser.press(*TAB)
    assert browser.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    browser.press(*ENTER)
    assert browser.evaluate("document.activeElement.id") == "main"
    browser.press(*TAB)
    assert browser.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.evaluate("document.activeElement.parentElement.open") is True
    browser.press(*ENTER)
    assert browser.evaluate("document.activeElement.parentElement.open") is False


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_runs_out_of_a_narrow_or_a_wide_window(browser: Chromium, url: str, width: int) -> None:
    browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    try:
        browser.open(url)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        browser.ask("Emulation.clearDeviceMetricsOverride")


def test_the_page_is_whole_without_script(browser: Chromium, url: str) -> None:
    browser.open(url)
    seen = browser.screenshot()
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(url)
        assert browser.screenshot() == seen
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
