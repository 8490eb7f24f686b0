from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hcc.mesh.caller import Remembered, caller_key, caller_name, key_name, keyed_caller, named_caller, parse_remembered
from hcc.mesh.caller_book import MAX_PEERS, CallerBook
from hcc.mesh.identity import ServiceIdentity
from hcc.mesh.intentions import Action, Intention, Policy
from hcc.mesh.judgement import Judgement
from hcc.mesh.rules import ALLOW, DENY

DOMAIN = "11111111-2222-3333-4444-555555555555.consul"


def caller(service: str = "web", expires_s: int = 100, **more: str) -> Remembered:
    fields = {"trust_domain": DOMAIN, "datacenter": "dc1"} | more
    return Remembered(ServiceIdentity(service=service, **fields), expires_s)


def policy(**actions: Action) -> Policy:
    intentions = tuple(Intention(source, action, 9) for source, action in actions.items())
    return Policy("server", DOMAIN, intentions, default_allow=True)


def test_the_name_of_a_caller_tells_apart_whatever_a_certificate_does() -> None:
    names = {
        caller_name(one.identity)
        for one in (
            caller("web"),
            caller("web", datacenter="dc2"),
            caller("web", namespace="other"),
            caller("web", partition="other"),
            caller("web:dc1"),
            caller("Web"),
        )
    }
    assert len(names) == 6
    assert caller_name(caller("web").identity) == "web:dc1"


plain = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cn", "Cf", "Co")), min_size=1, max_size=30
)


@given(plain, plain, plain, st.integers(0, 2**40))
def test_what_is_remembered_reads_back(service: str, datacenter: str, namespace: str, expires_s: int) -> None:
    one = caller(service, expires_s, datacenter=datacenter, namespace=namespace)
    text = one.text()
    assert parse_remembered(text) == one
    assert not any(character.isspace() for character in text)
    assert text.count("|") == 3


def test_an_entry_that_is_not_ours_is_nobody() -> None:
    good = caller("web").text()
    for text in ("", "web", good.replace("web:dc1", "db:dc1"), good + "x", good.replace("spiffe", "https"), f"{good}|"):
        assert parse_remembered(text) is None


def test_verdicts_are_by_service_and_follow_the_policy() -> None:
    book = CallerBook()
    book.remember("A", caller("web"))
    book.remember("B", caller("web", 200))
    book.remember("C", caller("db"))

    web, db = (caller(name).identity.uri() for name in ("web", "db"))
    assert book.verdicts(Judgement(policy())) == {web: ALLOW, db: ALLOW}
    assert book.verdicts(Judgement(policy(web=Action.DENY))) == {web: DENY, db: ALLOW}


class Counting(Judgement):
    """Counts how often it is asked."""

    asked = 0

    def word_on(self, caller: ServiceIdentity) -> str:
        self.asked += 1
        return super().word_on(caller)


def test_under_one_policy_only_who_is_new_is_judged() -> None:
    book, judgement = CallerBook(), Counting(policy(web=Action.DENY))
    book.remember("A", caller("web"))
    assert book.verdicts(judgement) == {caller("web").identity.uri(): DENY}
    book.remember("B", caller("db"))
    assert book.verdicts(judgement) == {caller("web").identity.uri(): DENY, caller("db").identity.uri(): ALLOW}
    assert judgement.asked == 2

    book.forget_expired(1_000)
    assert book.verdicts(judgement) == {}
    book.remember("A", caller("web"))
    assert book.verdicts(judgement) == {caller("web").identity.uri(): DENY}


def test_a_service_is_forgotten_with_its_last_certificate() -> None:
    book = CallerBook()
    book.remember("A", caller("web", 100))
    book.remember("B", caller("web", 200))

    assert book.forget_expired(150)
    assert list(book.callers) == [caller("web").identity.uri()]
    assert not book.forget_expired(150)
    assert book.forget_expired(200)
    assert not book.callers
    assert len(book) == 0


def test_beyond_the_limit_the_oldest_goes() -> None:
    book = CallerBook(most=2)
    for digest, service in (("A", "web"), ("B", "db"), ("A", "web"), ("C", "api")):
        book.remember(digest, caller(service))

    assert list(book.identities()) == ["B", "C"]
    assert set(book.callers) == {caller(name).identity.uri() for name in ("db", "api")}


def test_news_are_told_once() -> None:
    book = CallerBook(most=1)
    book.remember("A", caller("web"))
    book.remember("B", caller("db"))

    assert book.take_news() == {"A": None, "B": caller("db").text()}
    assert book.take_news() == {}


def test_news_of_some_callers_are_left_for_later() -> None:
    book = CallerBook(most=2)
    for digest, service in (("A", "web"), ("B", "db"), ("C", "web")):
        book.remember(digest, caller(service))

    assert book.take_news(but={"web:dc1"}) == {"A": None, "B": caller("db").text()}
    assert book.take_news(but={"db:dc1"}) == {"C": caller("web").text()}


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_a_callers_name_names_it(service: str, datacenter: str, namespace: str, partition: str) -> None:
    for one in (
        ServiceIdentity(DOMAIN, service, datacenter),
        ServiceIdentity(DOMAIN, service, datacenter, namespace, partition),
    ):
        assert named_caller(caller_name(one), DOMAIN) == one
        # As an earlier hcc left it in maps.
        assert keyed_caller(caller_name(one), DOMAIN) == one
        assert key_name(caller_name(one)) == caller_name(one)
    for name in ("app", "web:dc1:x", "", "a:b:default:default"):
        assert named_caller(name, DOMAIN) is None


@given(plain, plain, plain)
def test_a_callers_key_names_it_with_its_trust_domain(service: str, datacenter: str, namespace: str) -> None:
    for domain in (DOMAIN, "other.consul"):
        one = ServiceIdentity(domain, service, datacenter, namespace)
        key = caller_key(one)
        assert keyed_caller(key, DOMAIN) == one
        assert key_name(key) == caller_name(one)
        assert Remembered(one, 1).text().split("|")[1] == key


def test_no_name_of_a_caller_ends_an_element_of_the_header_that_tells_it() -> None:
    odd = caller("x;URI=root,By=y")
    assert odd.text().split("|")[1].endswith("/svc/x%3BURI=root%2CBy=y")
    assert parse_remembered(odd.text()) == odd


def test_certificates_of_another_trust_domain_are_forgotten_with_their_names() -> None:
    book, other = CallerBook(), Remembered(ServiceIdentity("other.consul", "web", "dc1"), 9)
    book.remember("A", other)
    book.remember("B", caller("web"))
    assert book.keep_only(caller("web").identity.trust_domain)

    assert book.identities() == {"B": caller("web").text()}
    assert not book.keep_only(caller("web").identity.trust_domain)
    assert book.keep_only("third.consul")
    assert book.callers == ()


def test_peers_are_bounded_and_the_newest_note_counts() -> None:
    book = CallerBook()
    book.note_peer("10.0.0.1:1", "web:dc1")
    book.note_peer("10.0.0.1:1", "db:dc1")
    assert book.owner("10.0.0.1:1") == "db:dc1"
    for port in range(MAX_PEERS):
        book.note_peer(f"10.0.0.2:{port}", "web:dc1")
    assert book.owner("10.0.0.1:1") is None


@given(st.lists(st.tuples(st.sampled_from("ABCDEFGH"), st.sampled_from(["web", "db", "api"]), st.integers(1, 9))))
def test_news_make_out_of_what_was_what_is(met: list[tuple[str, str, int]]) -> None:
    book, told = CallerBook(most=4), dict[str, str]()
    for now_s, (digest, service, expires_s) in enumerate(met):
        book.remember(digest, caller(service, expires_s))
        book.forget_expired(now_s / 3)
        for key, text in book.take_news().items():
            if text is None:
                told.pop(key, None)
            else:
                told[key] = text
        assert told == book.identities()
        assert set(book.verdicts(Judgement(policy()))) == {text.split("|")[1] for text in told.values()}
        assert len(book) <= 4
