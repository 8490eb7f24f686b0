import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hcc.actors import consul_watcher
from hcc.actors.consul_watcher import ConsulWatcher, Ledger
from hcc.actors.keeping import Keeper
from hcc.actors.lifecycle import StaleGenerationError
from hcc.actors.messages import (
    ADMIN,
    CERT_MANAGER,
    CONFIG_RECONCILER,
    CONSUL_WATCHER,
    SPOE_POOL,
    CredentialsOffered,
    PolicyChanged,
    Publish,
    ReloadToken,
    SnapshotChanged,
)
from hcc.actors.readiness import ConsulFacts
from hcc.consul.abilities import Lack
from hcc.consul.answers import Answer, ChainOverride, IntentionList, MeshEntry, Registration
from hcc.consul.assembly import State
from hcc.consul.credentials import TokenSource
from hcc.consul.environment import consul_settings
from hcc.consul.errors import ConsulPermissionError, ConsulStatusError, ConsulUnavailableError
from hcc.consul.keys import (
    ChainWatch,
    IntentionsWatch,
    LeafWatch,
    MeshWatch,
    ProxyWatch,
    RootsWatch,
    TokenProvidersWatch,
    WatchKey,
)
from hcc.consul.watch import WatchEvent
from hcc.mesh import remembered
from hcc.mesh.intentions import Action, Intention
from hcc.mesh.permissions import JwtProvider
from hcc.mesh.request import Normalization
from hcc.mesh.token_providers import TokenProviders
from hcc.metrics import Metrics
from tests.actors.scene import Scene, playing
from tests.actors.stage import DEADLINE_S, eventually
from tests.builders import TRUST_DOMAIN, leaf, proxy, roots, upstream
from tests.fakes import FakeWatcher, FakeWatchers

PROXY = ProxyWatch("server-sidecar-proxy")
LEAF, ROOTS = LeafWatch("server"), RootsWatch()
NEWER_LEAF = leaf(cert_pem="newer")
INTENTIONS = IntentionsWatch("server", TRUST_DOMAIN, "dc1")


class HangingWatchers(FakeWatchers):
    """The first that watches `hang_at` is not made before `may_go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.hang_at: WatchKey | None = None
        self.hangs, self.may_go_on = threading.Event(), threading.Event()

    def make(self, key: WatchKey, deliver: Callable[[WatchKey, WatchEvent], None]) -> FakeWatcher:
        if key == self.hang_at and not self.hangs.is_set():
            self.hangs.set()
            assert self.may_go_on.wait(3 * DEADLINE_S)
        return super().make(key, deliver)

    def count(self) -> Counter[WatchKey]:
        return Counter(watcher.key for watcher in self.made if watcher.running)


class WatcherScene(Scene):
    def __init__(self, token_file: Path, earlier: State | None = None, *, shutdown_s: float = 5.0) -> None:
        self.watchers = HangingWatchers()
        self.kept: list[State] = []
        # The disk takes what is kept unless it is `full`, and only while this is set.
        self.full = False
        self.may_keep = threading.Event()
        self.may_keep.set()
        begin = earlier or State("server-sidecar-proxy")
        unconfirmed = frozenset(key for key, _ in earlier.values) if earlier else frozenset()
        self.ledger = Ledger(begin, unconfirmed=unconfirmed, keeper=Keeper(self.keep, begin))
        token_file.write_text("first")
        self.tokens = TokenSource(consul_settings(token_file=str(token_file)))
        super().__init__(
            CONSUL_WATCHER,
            ConsulWatcher,
            {
                "make_watcher": self.watchers.make,
                "ledger": self.ledger,
                "tokens": self.tokens,
                "metrics": Metrics(),
            },
            (ADMIN, CERT_MANAGER, CONFIG_RECONCILER, SPOE_POOL),
            shutdown_s=shutdown_s,
        )
        self.watches(*([key for key, _ in earlier.values] if earlier else [PROXY, RootsWatch(), MeshWatch()]))

    def keep(self, state: State) -> bool:
        assert self.may_keep.wait(3 * DEADLINE_S)
        if not self.full:
            self.kept.append(state)
        return not self.full

    def watches(self, *keys: WatchKey) -> None:
        eventually(lambda: self.watchers.running() == set(keys), f"watches of {keys}")

    def fail_all(self) -> None:
        """There is no agent."""
        for key in self.watchers.running():
            self.watchers.fail(key, ConsulUnavailableError("no answer"))

    def answer_all(self) -> None:
        """Everything that a proxy without upstreams is asked for."""
        self.watchers.say(PROXY, Registration(proxy(), "dc1"))
        self.watchers.say(RootsWatch(), roots())
        self.watchers.say(MeshWatch(), MeshEntry())
        self.watches(PROXY, RootsWatch(), MeshWatch(), LEAF, INTENTIONS)
        self.watchers.say(LEAF, leaf())
        self.watchers.say(INTENTIONS, IntentionList((), default_allow=True))
        self.expect(SPOE_POOL, PolicyChanged)
        self.expect(CERT_MANAGER, CredentialsOffered)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[WatcherScene]:
    made = WatcherScene(tmp_path / "token")
    with playing(made):
        yield made


def test_what_runs_goes_on_where_there_is_no_thread_for_more_and_the_rest_follows(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consul_watcher, "FOLLOW_AGAIN_S", 0.05)
    scene.answer_all()
    before = scene.watchers.running()
    scene.watchers.unstartable = (ChainWatch,)

    scene.watchers.say(PROXY, Registration(proxy(upstreams=[upstream("db")]), "dc1", overrides=(ChainOverride(),)))
    eventually(lambda: "no thread to ask Consul in" in caplog.text, "a word about it")
    assert scene.watchers.running() == before
    scene.watchers.say(INTENTIONS, IntentionList((), default_allow=False))
    scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is False)

    scene.watchers.unstartable = ()
    eventually(lambda: any(isinstance(key, ChainWatch) for key in scene.watchers.running()), "the chain is asked for")
    assert scene.watchers.running() > before
    assert caplog.text.count("no thread to ask Consul in") == 1
    assert scene.tree.actors(DEADLINE_S)[-1].generation == 1


def test_each_answer_leads_to_the_next_questions_and_to_a_snapshot(scene: WatcherScene) -> None:
    scene.answer_all()

    last = scene.expect(CONFIG_RECONCILER, SnapshotChanged, lambda told: told.snapshot.policy is not None)
    assert last.snapshot.leaf == leaf()
    assert last.snapshot.roots == roots()


def test_versions_only_grow_and_an_unchanged_answer_is_no_news(scene: WatcherScene) -> None:
    scene.answer_all()
    scene.expect(CONFIG_RECONCILER, SnapshotChanged, lambda told: told.snapshot.policy is not None)
    told = len(scene.heard[CONFIG_RECONCILER])

    scene.watchers.say(LEAF, leaf())
    scene.watchers.say(LEAF, NEWER_LEAF)

    newest = scene.expect(
        CONFIG_RECONCILER,
        SnapshotChanged,
        lambda told: told.snapshot.leaf == NEWER_LEAF,
    )
    versions = [m.snapshot.version for m in scene.heard[CONFIG_RECONCILER] if isinstance(m, SnapshotChanged)]
    assert versions == sorted(set(versions))
    assert len(scene.heard[CONFIG_RECONCILER]) == told + 1
    assert newest.snapshot.version == versions[-1]


def test_what_was_made_of_endpoints_that_are_gone_is_forgotten(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_caches", [])
    made = remembered.remembered(lambda number: [number])
    first = made(0)
    for number in range(remembered.SPARE + 1):
        made(number)

    scene.answer_all()

    eventually(lambda: made(0) is not first, "it is made anew")


def test_a_change_of_intentions_alone_is_told_first_to_who_enforces_it(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.answer_all()
    scene.expect(CONFIG_RECONCILER, SnapshotChanged, lambda told: told.snapshot.policy is not None)
    monkeypatch.setattr(consul_watcher, "POLICY_FIRST_S", 60.0)
    told = len(scene.heard[CONFIG_RECONCILER])

    scene.watchers.say(INTENTIONS, IntentionList((), default_allow=False))
    scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is False)
    scene.watchers.say(LEAF, NEWER_LEAF)
    newest = scene.expect(
        CONFIG_RECONCILER,
        SnapshotChanged,
        lambda told: told.snapshot.leaf == NEWER_LEAF,
    )

    # With what else changed, at once.
    assert len(scene.heard[CONFIG_RECONCILER]) == told + 1
    assert newest.snapshot.policy is not None
    assert newest.snapshot.policy.default_allow is False


def test_the_others_hear_of_a_change_of_intentions_alone_a_moment_later(scene: WatcherScene) -> None:
    scene.answer_all()

    scene.watchers.say(INTENTIONS, IntentionList((), default_allow=False))

    scene.expect(
        CONFIG_RECONCILER,
        SnapshotChanged,
        lambda told: told.snapshot.policy is not None and told.snapshot.policy.default_allow is False,
    )


DEMANDING = IntentionList((Intention("web", Action.ALLOW, 9, jwt=(JwtProvider("okta"),)),), default_allow=True)


def test_a_policy_that_comes_to_demand_tokens_is_told_with_who_signs_them(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_watcher, "PROVIDERS_WITHIN_S", 60.0)
    scene.answer_all()
    scene.watchers.say(INTENTIONS, DEMANDING)
    scene.watches(PROXY, RootsWatch(), MeshWatch(), LEAF, INTENTIONS, TokenProvidersWatch())
    # What else changes does not wait, and has the policy of before.
    scene.watchers.say(LEAF, NEWER_LEAF)
    scene.expect(
        CONFIG_RECONCILER,
        SnapshotChanged,
        lambda told: told.snapshot.leaf == NEWER_LEAF,
    )

    scene.watchers.say(TokenProvidersWatch(), TokenProviders())

    told = scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.intentions == DEMANDING.intentions).policy
    assert told.providers == TokenProviders()
    policies = [one.policy for one in scene.heard[SPOE_POOL] if isinstance(one, PolicyChanged)]
    assert all(one.complete for one in policies), policies


def test_a_policy_waits_for_who_signs_its_tokens_only_for_a_while(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_watcher, "PROVIDERS_WITHIN_S", 0.2)
    scene.answer_all()

    scene.watchers.say(INTENTIONS, DEMANDING)

    told = scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.intentions == DEMANDING.intentions).policy
    assert told.providers is None
    scene.watchers.say(INTENTIONS, IntentionList((*DEMANDING.intentions, Intention("db", Action.DENY, 9)), True))
    scene.expect(SPOE_POOL, PolicyChanged, lambda told: len(told.policy.intentions) == 2)


def test_a_restarted_watcher_never_tells_of_less_than_before(scene: WatcherScene) -> None:
    scene.answer_all()
    before = scene.expect(CONFIG_RECONCILER, SnapshotChanged, lambda told: told.snapshot.policy is not None)
    told = len(scene.heard[CONFIG_RECONCILER])

    scene.restart()
    scene.tell(Publish())

    eventually(lambda: len(scene.heard[CONFIG_RECONCILER]) > told, "the snapshot is told again")
    for message in scene.heard[CONFIG_RECONCILER][told:]:
        assert isinstance(message, SnapshotChanged)
        assert message.snapshot.leaf == before.snapshot.leaf
        assert message.snapshot.policy == before.snapshot.policy
    scene.watches(PROXY, RootsWatch(), MeshWatch(), LEAF, INTENTIONS)


def test_a_watcher_that_was_abandoned_leaves_nothing_that_runs_and_changes_nothing_when_it_wakes_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_watcher, "KEEP_WITHIN_S", 0.0)
    scene = WatcherScene(tmp_path / "token", shutdown_s=0.1)
    with playing(scene), caplog.at_level(logging.INFO, logger="hcc.actors.supervisor"):
        scene.answer_all()
        eventually(lambda: bool(scene.kept), "the first answers are kept")
        scene.watchers.hang_at = TokenProvidersWatch()
        scene.watchers.say(INTENTIONS, DEMANDING)
        assert scene.watchers.hangs.wait(DEADLINE_S)

        scene.restart()

        now = {PROXY, ROOTS, MeshWatch(), LEAF, INTENTIONS, TokenProvidersWatch()}
        eventually(lambda: scene.watchers.count() == Counter(now), "each question is asked once")
        scene.watchers.say(LEAF, leaf(cert_pem="renewed"))
        eventually(lambda: dict(scene.kept[-1].values)[LEAF] == leaf(cert_pem="renewed"), "the new leaf is kept")
        last, kept = scene.ledger.page.snapshot, scene.kept[-1]

        scene.watchers.may_go_on.set()

        eventually(lambda: "generation 1) has ended" in caplog.text, "the predecessor ends")
        assert scene.watchers.count() == Counter(now)
        assert {watcher.key for watcher in scene.ledger.page.watchers} == now
        assert scene.ledger.page.snapshot is last
        assert scene.ledger.keeper is not None
        assert scene.ledger.keeper.has(kept)


def test_a_generation_that_begins_after_its_successor_is_refused() -> None:
    ledger = Ledger(State("server-sidecar-proxy"))
    page = ledger.turn(2)

    with pytest.raises(StaleGenerationError):
        ledger.turn(1)

    assert ledger.page is page


def test_what_consul_lacks_is_told_once_with_its_cost(scene: WatcherScene, caplog: pytest.LogCaptureFixture) -> None:
    scene.answer_all()
    lacks = frozenset((Lack.BLOCKING_MATCH, Lack.CENTRAL_MERGE))
    with caplog.at_level(logging.INFO, logger="hcc.actors.consul_watcher"):
        scene.watchers.say(INTENTIONS, IntentionList((), False, lacks))
        scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is False)
        scene.watchers.say(INTENTIONS, IntentionList((), True, lacks))
        scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.version == 3)
        scene.restart()
        scene.watches(PROXY, RootsWatch(), MeshWatch(), LEAF, INTENTIONS)
        scene.watchers.say(INTENTIONS, IntentionList((), None, lacks))
        scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is None)
    told = [record.getMessage() for record in caplog.records if "missing in this Consul" in record.getMessage()]
    assert [any(lack.value in line for line in told) for lack in lacks] == [True, True]
    assert len(told) == 2


def test_a_failing_watch_is_told_once_and_so_is_its_recovery(
    scene: WatcherScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.answer_all()
    with caplog.at_level(logging.INFO, logger="hcc.actors.consul_watcher"):
        for _ in range(3):
            scene.watchers.fail(LEAF, ConsulUnavailableError("no answer"))
        eventually(lambda: bool((scene.facts(ADMIN, ConsulFacts) or ConsulFacts()).failing), "the failure is reported")
        scene.watchers.say(LEAF, leaf())
        eventually(lambda: (scene.facts(ADMIN, ConsulFacts) or ConsulFacts(failing=("x",))).failing == (), "recovery")

    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "no answer" in line]) == 1
    assert len([line for line in said if "answers again" in line]) == 1


def test_a_watch_that_fails_at_one_server_after_the_other_is_told_once(
    scene: WatcherScene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.answer_all()
    with caplog.at_level(logging.INFO, logger="hcc.actors.consul_watcher"):
        for server in ("10.0.0.1:8300", "10.0.0.12:8300", "fd00::c:8300"):
            refused = f"found 500 'dial tcp 10.0.0.7:0->{server}: connect: connection refused'"
            scene.watchers.fail(LEAF, ConsulStatusError(refused, 500))
        scene.watchers.fail(LEAF, ConsulStatusError("found 500 'No cluster leader'", 500))
        eventually(lambda: "No cluster leader" in caplog.text, "the other reason")

    said = [record.getMessage() for record in caplog.records if "the last good answer stays" in record.getMessage()]
    assert ["connection refused" in line for line in said] == [True, False]


def test_when_consul_answers_one_watch_again_the_others_that_fail_ask_soon(scene: WatcherScene) -> None:
    scene.answer_all()
    for key in (LEAF, ROOTS):
        scene.watchers.fail(key, ConsulUnavailableError("no answer"))

    scene.watchers.say(LEAF, leaf())

    def hurried() -> set[WatchKey]:
        return {watcher.key for watcher in scene.watchers.made if watcher.hurried}

    eventually(lambda: hurried() == {ROOTS}, "the other one asks")


def test_with_a_right_or_a_token_that_came_all_that_were_refused_ask_soon(scene: WatcherScene, tmp_path: Path) -> None:
    def hurried() -> set[WatchKey]:
        return {watcher.key for watcher in scene.watchers.made if watcher.hurried}

    scene.answer_all()
    for key, error in (
        (LEAF, ConsulPermissionError("no right", 403)),
        (ROOTS, ConsulStatusError("slow down", 429)),
        (INTENTIONS, ConsulPermissionError("no right", 403)),
    ):
        scene.watchers.fail(key, error)
    scene.watchers.say(LEAF, leaf())
    eventually(lambda: hurried() == {INTENTIONS}, "the other one that was refused asks")

    scene.watchers.fail(PROXY, ConsulPermissionError("no right", 403))
    (tmp_path / "token").write_text("second")
    scene.tell(ReloadToken())
    eventually(lambda: hurried() == {INTENTIONS, PROXY}, "all that were refused ask with the new token")


def test_the_token_file_is_read_again_and_a_bad_one_leaves_the_old_token(
    scene: WatcherScene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "token").write_text("second")
    scene.tell(ReloadToken())
    eventually(lambda: (token := scene.tokens()) is not None and token.reveal() == "second", "the new token")

    (tmp_path / "token").unlink()
    with caplog.at_level(logging.ERROR, logger="hcc.actors.consul_watcher"):
        scene.tell(ReloadToken())
        eventually(lambda: "the old token stays" in caplog.text, "the complaint")
    token = scene.tokens()
    assert token is not None
    assert token.reveal() == "second"
    assert "second" not in caplog.text


def test_the_ledger_shows_anybody_the_newest_snapshot_and_the_watches_that_run(scene: WatcherScene) -> None:
    scene.answer_all()

    told = scene.expect(CONFIG_RECONCILER, SnapshotChanged, lambda news: news.snapshot.policy is not None)

    assert scene.ledger.page.snapshot == told.snapshot
    assert {watcher.key for watcher in scene.ledger.page.watchers} == {
        PROXY,
        RootsWatch(),
        MeshWatch(),
        LEAF,
        INTENTIONS,
    }


EARLIER = State(
    "server-sidecar-proxy",
    (
        (PROXY, Registration(proxy(), "dc1")),
        (RootsWatch(), roots()),
        (MeshWatch(), MeshEntry()),
        (LEAF, leaf()),
        (INTENTIONS, IntentionList((), default_allow=True)),
    ),
    7,
)


@pytest.fixture
def restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatcherScene]:
    """With the answers of an earlier run, for which Consul has all the time to confirm them."""
    monkeypatch.setattr(consul_watcher, "CONFIRM_S", 60.0)
    made = WatcherScene(tmp_path / "token", EARLIER)
    with playing(made):
        yield made


def test_answers_of_an_earlier_run_are_told_when_consul_does_not_answer_and_called_stale(
    restored: WatcherScene,
) -> None:
    assert not restored.heard[CONFIG_RECONCILER], "Consul was not given the time to confirm them"
    restored.fail_all()
    told = restored.expect(CONFIG_RECONCILER, SnapshotChanged)
    assert told.snapshot.complete(intentions=True)
    restored.expect(CERT_MANAGER, CredentialsOffered)
    assert restored.expect(SPOE_POOL, PolicyChanged).policy.version == 7
    eventually(
        lambda: len((restored.facts(ADMIN, ConsulFacts) or ConsulFacts()).stale) == len(EARLIER.values), "all is stale"
    )
    restored.watchers.say(LEAF, leaf())
    eventually(
        lambda: len((restored.facts(ADMIN, ConsulFacts) or ConsulFacts()).stale) == len(EARLIER.values) - 1,
        "the leaf is confirmed",
    )


@pytest.mark.parametrize(
    "error",
    [
        ConsulStatusError("No path to datacenter", 500),
        ConsulPermissionError("no right", 403),
        ConsulUnavailableError("connection reset by peer"),
    ],
)
def test_what_consul_fails_to_answer_makes_none_of_its_other_answers_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(consul_watcher, "CONFIRM_S", 60.0)
    scene = WatcherScene(tmp_path / "token", EARLIER)
    with playing(scene):
        scene.watchers.fail(MeshWatch(), error)
        for key, value in EARLIER.values:
            if key not in (MeshWatch(), INTENTIONS):
                scene.watchers.say(key, value)
        eventually(lambda: scene.ledger.page.unconfirmed == {MeshWatch(), INTENTIONS}, "the others are confirmed")
        assert scene.ledger.page.snapshot is None, "an old answer is told"
        scene.watchers.say(INTENTIONS, DENIED)

        scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is False)
        scene.expect(CONFIG_RECONCILER, SnapshotChanged)
        eventually(
            lambda: (scene.facts(ADMIN, ConsulFacts) or ConsulFacts()).stale == (MeshWatch().label(),),
            "only that one is stale",
        )


def test_a_restarted_actor_tells_no_earlier_answer_either_before_consul_had_time_to_confirm_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_watcher, "CONFIRM_S", 60.0)
    scene = WatcherScene(tmp_path / "token", EARLIER)
    with playing(scene):
        scene.restart()
        scene.watches(*(key for key, _ in EARLIER.values))
        scene.tell(Publish())
        scene.settle()
        assert not scene.all_of(SPOE_POOL, PolicyChanged), "an old answer is told"
        assert not scene.all_of(CONFIG_RECONCILER, SnapshotChanged)

        for key, value in EARLIER.values:
            scene.watchers.say(key, DENIED if key == INTENTIONS else value)

        told = scene.expect(SPOE_POOL, PolicyChanged)
        assert told.policy.default_allow is False
        scene.restart()
        scene.settle()
        assert len(scene.all_of(SPOE_POOL, PolicyChanged)) > 1, "what is confirmed is told at once"


def test_answers_that_consul_confirms_in_time_are_told_once_and_are_not_stale(restored: WatcherScene) -> None:
    for key, value in EARLIER.values:
        restored.watchers.say(key, value)
    restored.expect(CONFIG_RECONCILER, SnapshotChanged)
    eventually(lambda: restored.facts(ADMIN, ConsulFacts) == ConsulFacts(proxy_known=True), "nothing is stale")
    assert len(restored.heard[CONFIG_RECONCILER]) == 1
    assert restored.kept == [], "what is on disk already was written again"


def test_without_any_word_of_consul_the_earlier_answers_serve_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_watcher, "CONFIRM_S", 0.2)
    scene = WatcherScene(tmp_path / "token", EARLIER)
    with playing(scene):
        scene.expect(CONFIG_RECONCILER, SnapshotChanged)
        eventually(lambda: bool((scene.facts(ADMIN, ConsulFacts) or ConsulFacts()).stale), "that they are old is told")


def test_a_newer_answer_replaces_the_earlier_one(restored: WatcherScene) -> None:
    restored.fail_all()
    restored.expect(CONFIG_RECONCILER, SnapshotChanged)
    restored.watchers.say(LEAF, NEWER_LEAF)
    restored.expect(CONFIG_RECONCILER, SnapshotChanged, lambda told: told.snapshot.leaf == NEWER_LEAF)


def test_answers_are_kept_once_there_is_a_leaf_and_again_at_the_end(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_watcher, "KEEP_POLICY_WITHIN_S", 60.0)
    scene.answer_all()
    eventually(lambda: bool(scene.kept), "the answers are kept")
    scene.watchers.say(LEAF, NEWER_LEAF)
    scene.expect(CONFIG_RECONCILER, SnapshotChanged, lambda told: told.snapshot.leaf == NEWER_LEAF)
    scene.tree.stop(5)
    assert dict(scene.kept[-1].values)[LEAF] == NEWER_LEAF
    assert len(scene.kept) == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (INTENTIONS, IntentionList((), default_allow=False)),
        (MeshWatch(), MeshEntry(Normalization(merge_slashes=True))),
    ],
)
def test_a_policy_is_kept_soon_and_does_not_wait_for_what_is_to_be_kept_later(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch, key: WatchKey, value: Answer
) -> None:
    monkeypatch.setattr(consul_watcher, "KEEP_WITHIN_S", 60.0)
    scene.answer_all()
    eventually(lambda: bool(scene.kept) and INTENTIONS in dict(scene.kept[-1].values), "the first answers are kept")
    scene.watchers.say(LEAF, NEWER_LEAF)

    scene.watchers.say(key, value)

    eventually(lambda: dict(scene.kept[-1].values)[key] == value, "the policy is kept")
    assert dict(scene.kept[-1].values)[LEAF] == NEWER_LEAF


DENIED = IntentionList((), default_allow=False)


def test_a_denial_that_the_disk_did_not_take_is_kept_once_it_can_be(scene: WatcherScene) -> None:
    scene.answer_all()
    eventually(lambda: bool(scene.kept), "the first answers are kept")
    scene.full = True
    scene.watchers.say(INTENTIONS, DENIED)
    scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is False)
    scene.restart()

    scene.full = False

    eventually(lambda: dict(scene.kept[-1].values).get(INTENTIONS) == DENIED, "it is kept")


def test_a_disk_that_hangs_keeps_nobody_from_a_denial_and_gets_the_newest_in_the_end(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consul_watcher, "KEEP_POLICY_WITHIN_S", 0.0)
    monkeypatch.setattr(consul_watcher, "KEEP_AT_END_S", 0.0)
    scene.may_keep.clear()
    scene.answer_all()
    scene.watchers.say(INTENTIONS, DENIED)
    scene.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is False)
    scene.restart()

    scene.may_keep.set()

    eventually(lambda: dict(scene.kept[-1].values).get(INTENTIONS) == DENIED if scene.kept else False, "it is kept")


@pytest.mark.parametrize("end", ["time", "failure", "restart"])
def test_a_denial_that_came_while_the_rest_was_being_confirmed_is_kept(
    restored: WatcherScene, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(consul_watcher, "KEEP_POLICY_WITHIN_S", 0.05)
    restored.watchers.say(INTENTIONS, DENIED)
    eventually(lambda: dict(restored.ledger.page.state.values)[INTENTIONS] == DENIED, "it is heard")

    if end == "restart":
        restored.restart()
    if end == "failure":
        restored.fail_all()
    else:
        restored.tell(consul_watcher._Unconfirmed())

    restored.expect(SPOE_POOL, PolicyChanged, lambda told: told.policy.default_allow is False)
    eventually(lambda: bool(restored.kept), "it is kept")
    assert dict(restored.kept[-1].values)[INTENTIONS] == DENIED


def test_changes_of_the_policy_that_follow_each_other_do_not_keep_the_snapshot_from_anybody(
    scene: WatcherScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.answer_all()
    scene.expect(CONFIG_RECONCILER, SnapshotChanged, lambda told: told.snapshot.policy is not None)
    monkeypatch.setattr(consul_watcher, "POLICY_FIRST_S", 0.3)
    told = len(scene.heard[CONFIG_RECONCILER])

    allow = False
    for _ in range(100):
        scene.watchers.say(INTENTIONS, IntentionList((), default_allow=allow))
        allow = not allow
        time.sleep(0.05)
        if len(scene.heard[CONFIG_RECONCILER]) > told:
            break

    assert len(scene.heard[CONFIG_RECONCILER]) > told
