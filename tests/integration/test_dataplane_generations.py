"""The same control over each generation of the Data Plane API: fakes, as no 2.x or 3.x can be had here."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hcc.haproxy.capabilities import Version, capabilities
from hcc.haproxy.dataplane import DataplaneControl
from hcc.haproxy.dataplane_client import AGAIN_TIMEOUT_S, DataplaneClient, DataplaneError
from hcc.haproxy.dataplane_text import USER, differences, version_of, with_user
from hcc.haproxy.desired import desired
from hcc.haproxy.desired_terms import Certificates, Options
from hcc.haproxy.layout import Layout, layout
from hcc.haproxy.model import GlobalOptions
from hcc.haproxy.plan import Install, Plan, WriteConfig, plan
from hcc.haproxy.reload_helper import settle
from hcc.haproxy.render import Rendered, render
from hcc.mesh.secret import Secret
from hcc.settings import Enforcement
from tests.builders import proxy, snapshot, upstream, upstream_state, with_text
from tests.fake_dataplane import FakeDataplane

pytestmark = pytest.mark.integration

PASSWORD = "made-up"
# With everything, so that the fake of 1.x finds something to drop.
ABLE = capabilities(Version(3, 2))


class Scene:
    """A fake, a control and nothing that runs; the reload command is our own, in this process."""

    def __init__(self, generation: int, directory: Path) -> None:
        self.layout: Layout = layout(str(directory))
        self.path = Path(self.layout.config)
        self.path.write_text(with_user("global\n  maxconn 10\n", PASSWORD), encoding="utf-8")
        self.reload_fails = ""
        self.fake = self._started(generation)
        self.control = DataplaneControl("/bin/true", self.layout, ABLE, Secret(PASSWORD))

    @property
    def file(self) -> str:
        return self.path.read_text(encoding="utf-8")

    def rendered(self, *ports: int, intentions: Enforcement = Enforcement.OFF) -> Rendered:
        wanted = snapshot(
            *(upstream_state(upstream("web", port)) for port in ports), proxy_=proxy(local_port=0 if ports else 8181)
        )
        process = GlobalOptions(stats_socket=self.layout.stats_socket, state_directory=self.layout.directory)
        maps = (self.layout.identities, self.layout.verdicts, self.layout.rules)
        keys = self.layout.ticket_keys, Secret("of a test")
        options = Options(process, (self.layout.agent_socket(1),), *maps, *keys, intentions)
        return render(desired(wanted, options, Certificates()).desired, ABLE)

    def restart(self, generation: int) -> None:
        """As another one."""
        self.fake.close()
        Path(self.layout.dataplane_socket).unlink()
        self.fake = self._started(generation)

    def says(self, rendered: Rendered) -> bool:
        return not differences(with_user(rendered.config, PASSWORD), self.file)

    def _started(self, generation: int) -> FakeDataplane:
        return FakeDataplane(
            generation, self.layout.dataplane_socket, self.layout.config, reload=self._reload, check=self._check
        )

    def _reload(self) -> None:
        settle(self.layout)
        if self.reload_fails:
            raise RuntimeError(self.reload_fails)

    def _check(self, text: str) -> None:
        if "nonsense" in text:
            raise ValueError("unknown keyword 'nonsense'")


@pytest.fixture(params=[1, 2, 3])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(request.param, tmp_path)
    try:
        yield made
    finally:
        made.fake.close()


def test_the_generation_is_found_by_probing(there: Scene) -> None:
    client = DataplaneClient(there.layout.dataplane_socket, Secret(PASSWORD), lambda: True)
    assert client.generation() == there.fake.generation


def test_a_wrong_password_is_said_and_not_waited_out_for_ever(there: Scene) -> None:
    client = DataplaneClient(there.layout.dataplane_socket, Secret("other"), lambda: True)
    with pytest.raises(DataplaneError, match="with our password"):
        client.generation(timeout_s=0.1)


def test_nobody_there_is_said_within_the_time(tmp_path: Path) -> None:
    client = DataplaneClient(str(tmp_path / "none.sock"), Secret(PASSWORD), lambda: True)
    started = time.monotonic()
    with pytest.raises(DataplaneError, match="does not answer"):
        client.generation(timeout_s=0.1)
    assert time.monotonic() - started < 10


def test_one_that_starts_is_waited_for_until_it_ends(tmp_path: Path) -> None:
    started = time.monotonic()
    ends_s = 2 * AGAIN_TIMEOUT_S
    client = DataplaneClient(str(tmp_path / "none.sock"), Secret(PASSWORD), lambda: time.monotonic() - started < ends_s)
    with pytest.raises(DataplaneError, match="does not answer"):
        client.generation()
    assert ends_s <= time.monotonic() - started < 10


def test_an_installed_text_is_on_disk_and_needs_no_further_plan(there: Scene) -> None:
    rendered = there.rendered(9191, 9192)

    applied = there.control.apply(plan(rendered, there.control.read_actual(rendered)))

    assert [type(operation) for operation in applied.done] == [Install]
    assert there.says(rendered)
    assert not plan(rendered, there.control.read_actual(rendered))


def test_texts_follow_each_other_with_one_post_each(there: Scene) -> None:
    for ports in ((9191,), (9191, 9192), (9192,)):
        assert there.control.apply(Plan((Install(there.rendered(*ports)),))).failure is None
    assert len(there.fake.posts) == 3
    assert version_of(there.file) == 4


@pytest.mark.parametrize("there", [1], indirect=True)
def test_a_text_is_posted_to_another_generation_that_was_started_in_the_place_of_one(there: Scene) -> None:
    assert there.control.apply(Plan((Install(there.rendered(9191)),))).failure is None
    for generation in (3, 2):
        there.restart(generation)
        rendered = there.rendered(9191, 9190 + generation)

        assert there.control.apply(Plan((Install(rendered),))).failure is None

        assert there.says(rendered)
        assert len(there.fake.posts) == 1


def test_another_idea_of_the_version_is_taken_over(there: Scene) -> None:
    there.fake.version = 41
    rendered = there.rendered(9191)

    assert there.control.apply(Plan((Install(rendered),))).failure is None

    assert version_of(there.file) == 42


def test_a_refused_text_changes_nothing(there: Scene) -> None:
    good = there.rendered(9191)
    there.control.apply(Plan((Install(good),)))
    before = there.file
    bad = replace(with_text(good, "global\n  nonsense\n", structure="f"), files=())

    failure = there.control.apply(Plan((Install(bad),))).failure

    assert failure is not None
    assert "unknown keyword 'nonsense'" in str(failure)
    assert there.file == before


def test_a_failed_reload_leaves_the_last_good_text_posted_again_where_it_was_lost(there: Scene) -> None:
    good, other = there.rendered(9191), there.rendered(9192)
    there.control.apply(Plan((Install(good),)))
    there.reload_fails = "port 9192 is taken"

    failure = there.control.apply(Plan((WriteConfig(other),))).failure

    assert failure is not None
    assert "port 9192 is taken" in str(failure)
    assert there.says(good)


def test_a_reload_put_off_is_followed_to_its_end(there: Scene) -> None:
    there.fake.delayed = True
    good = there.rendered(9191)
    assert there.control.apply(Plan((Install(good),))).failure is None
    assert there.says(good)
    there.reload_fails = "no"

    failure = there.control.apply(Plan((Install(there.rendered(9192)),))).failure

    assert failure is not None
    assert "the reload failed" in str(failure)
    assert there.says(good)


def test_what_a_generation_drops_is_put_right_and_said_once(there: Scene, caplog: pytest.LogCaptureFixture) -> None:
    base = there.rendered(9191)
    extra = "\nbackend extra\n  server w1 127.0.0.1:1 pool-low-conn 64\n"
    rendered = with_text(base, base.config + extra, structure=base.structure)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert there.control.apply(Plan((WriteConfig(rendered),))).failure is None
    assert there.says(rendered)
    lacking = [record for record in caplog.records if "pool-low-conn" in record.getMessage()]
    assert len(lacking) == (1 if there.fake.generation == 1 else 0)
    assert PASSWORD not in caplog.text
    assert f"user {USER}" in there.file
