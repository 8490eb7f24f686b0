"""Words by which HAProxy decides requests under layer-7 rules: one form for each, and a look into the map of rules.

Pure. The text that is looked up is that of `hcc.haproxy.request_rules`; the form is `hcc.mesh.request.normalised`. A
request without such a form gets 400, one that the rules do not allow 403. Tests hold both against `decide`. Where
nothing is enforced, the same is found out, and every request goes on as it was sent.
"""

from __future__ import annotations

from collections.abc import Iterator

from hcc.haproxy import words
from hcc.haproxy.capabilities import Capabilities, Feature
from hcc.haproxy.model import Authorisation
from hcc.haproxy.request_rules import headers_digest
from hcc.mesh.request import METHODS, EscapedSlashes, Look, LookedAt, Underscores
from hcc.mesh.rules import ALLOW, NAME_PREFIX
from hcc.mesh.token_demands import TOKEN_PREFIX

RULED = "hcc_ruled"
METHOD, PATH, TEXT, LINE = "txn.hcc_method", "txn.hcc_path", "txn.hcc_request", "txn.hcc_line"
SAID = "txn.hcc_said"
# Where nothing is enforced: path and query as they were sent, and the verdict on a request without a normal form.
SENT = "txn.hcc_sent"
FORMLESS = "formless"
# LF ends each line of the text; the configuration's parser reads the escape.
_LF = r"\n"
_RULE = "  http-request"
# Control characters, without the tab; and for regular expressions, which PCRE matches by bytes, RE2 by characters.
_NO_VALUE = r"'[\x00-\x08\x0a-\x1f\x7f]'"
_NO_SUBJECT = r"'[\x00-\x08\x0a-\x1f\x7f-\xff]'"
# All but visible ASCII, and the sign of a fragment.
_NO_TARGET = r"'[^\x21\x22\x24-\x7e]'"
# What Envoy escapes where it stands as itself, and dot segments; what it would decode.
_NOT_NORMAL = r"'[\x22\x3c\x3e\x5c\x5e\x60\x7b-\x7d]' '/[.]{1,2}(/|$)'"
_NEEDLESS = "'%(2[de]|3[0-9]|[46][1-9a-f]|[57][0-9a]|5f|7e)'"
_DOTS_WITH_PARAMETER = "/.; /..;"
_ESCAPED_SLASHES = "%2f %5c"
_NO_ESCAPE = "'%([^0-9a-f]|.[^0-9a-f]|.?$)'"


def rule_lines(authorisation: Authorisation, verdict: str, capabilities: Capabilities) -> Iterator[str]:
    """The lines of the public listener that decide a request whose verdict, in that variable, names a rule set.

    A request without a normal form is refused by them, one that rules refuse is `refused` after them.
    """
    yield f"  acl {RULED} var({verdict}) -m beg {NAME_PREFIX}"
    refuse = f"{_RULE} {_refusal(authorisation, verdict)} if {RULED}"
    # The converter makes it a text. HAProxy 3.4 warns where the method itself is compared as one.
    yield f"{_RULE} set-var({METHOD}) method,concat() if {RULED}"
    yield from _one_form(authorisation, capabilities, refuse)
    yield f"{_RULE} set-var({PATH}) path if {RULED}"
    variables = [f"txn.hcc_header{number}" for number, _ in enumerate(authorisation.headers)]
    for header, variable in zip(authorisation.headers, variables, strict=True):
        if _is_dropped(header.name, authorisation):
            yield f"{_RULE} set-var({variable}) str(-),concat({_LF}) if {RULED}"
        else:
            yield from _header(header, variable, refuse)
    digest = headers_digest(authorisation.headers)
    text = [f"var({verdict})", f"concat({_LF}{digest}{_LF},{METHOD},{_LF})", f"concat(,{PATH},{_LF})"]
    text += [f"concat(,{variable},{_LF})" for variable in variables]
    yield f"{_RULE} set-var({TEXT}) {','.join(text)} if {RULED}"
    yield f"{_RULE} set-var({SAID}) var({TEXT}),map_reg({words.path(authorisation.rules)}) if {RULED}"


def refused(authorisation: Authorisation, verdict: str) -> str:
    """The condition, after these lines, that rules refuse the request, or would if they were enforced.

    Where tokens are asked about, one that a token decides is not refused yet.
    """
    judged = NAME_PREFIX if authorisation.enforced else f"{NAME_PREFIX} {FORMLESS}"
    said = f"-m beg {ALLOW} {TOKEN_PREFIX}" if authorisation.token_places else f"-m str {ALLOW}"
    return f"{{ var({verdict}) -m beg {judged} }} ! {{ var({SAID}) {said} }}"


def as_sent(authorisation: Authorisation, capabilities: Capabilities) -> Iterator[str]:
    """The line that gives a request that was only looked at the path back that it came with."""
    if capabilities.has(Feature.NORMALIZE_URI) and not authorisation.enforced:
        yield f"{_RULE} set-pathq '%[var({SENT})]' if {{ var({SENT}) -m found }}"


def needs_experimental(authorisation: Authorisation | None, capabilities: Capabilities) -> bool:
    """Whether these lines use what HAProxy calls experimental (`normalize-uri`)."""
    if authorisation is None or not capabilities.has(Feature.NORMALIZE_URI):
        return False
    return authorisation.normalization.path or authorisation.normalization.merge_slashes


def _refusal(authorisation: Authorisation, verdict: str) -> str:
    """What happens to a request without a normal form; only told, it is no request under rules any more."""
    return "deny deny_status 400" if authorisation.enforced else f"set-var({verdict}) str({FORMLESS})"


def _is_dropped(name: str, authorisation: Authorisation) -> bool:
    """Whether rules are not to see a header that is sent on all the same."""
    drops = authorisation.normalization.underscores is Underscores.DROP
    return drops and not authorisation.enforced and "_" in name


def _one_form(authorisation: Authorisation, capabilities: Capabilities, refuse: str) -> Iterator[str]:
    how = authorisation.normalization
    # Looked at before anything is changed: a path without a slash can get one by that.
    yield f"{refuse} ! {{ path_beg / }}"
    yield f"{refuse} {{ url -m reg {_NO_TARGET} }}"
    yield f"{refuse} ! {{ var({METHOD}) -m str {' '.join(METHODS)} }}"
    # HAProxy compares it with an absolute target's authority, and gives it to requests of HTTP/2.
    yield f"{refuse} ! {{ req.fhdr(host) -m found }}"
    able = capabilities.has(Feature.NORMALIZE_URI)
    if able and not authorisation.enforced:
        yield f"{_RULE} set-var({SENT}) pathq if {RULED}"
    if how.underscores is Underscores.DROP and able:
        if authorisation.enforced:
            yield f"{_RULE} del-header _ -m sub if {RULED}"
    elif how.underscores is not Underscores.ALLOW:
        yield f"{refuse} {{ req.hdr_names -m sub _ }}"
    if how.escaped_slashes is EscapedSlashes.UNESCAPE and able and how.path:
        # What %5C stands for becomes a slash in the next step anyway.
        yield f"{_RULE} set-path '%[path,regsub(%2f,/,gi),regsub(%5c,/,gi)]' if {RULED}"
    elif how.escaped_slashes is not EscapedSlashes.KEEP:
        yield f"{refuse} {{ path_sub -i {_ESCAPED_SLASHES} }}"
    if how.path:
        yield f"{refuse} {{ path_sub %00 }}"
        if able and not authorisation.enforced:
            # As `strict` refuses it below.
            yield f"{refuse} {{ path -m reg -i {_NEEDLESS} }} {{ url -m reg -i {_NO_ESCAPE} }}"
        yield from (_normalise() if able else _refuse_not_normal(refuse))
        yield f"{refuse} {{ path_sub {_DOTS_WITH_PARAMETER} }}"
    if how.merge_slashes:
        yield f"{_RULE} normalize-uri path-merge-slashes if {RULED}" if able else f"{refuse} {{ path_sub // }}"


def _normalise() -> Iterator[str]:
    """After Envoy, step by step; the decoding is done in the query, too, which no rule looks at.

    With a condition HAProxy (2.8.25) decodes nothing unless it is told `strict`, and then refuses what it cannot
    decode: so only a request whose path has something to decode can be refused for its escapes.
    """
    yield f"{_RULE} set-path '%[path,regsub([\\x5c],/,g)]' if {RULED}"
    yield f"{_RULE} normalize-uri percent-decode-unreserved strict if {RULED} {{ path -m reg -i {_NEEDLESS} }}"
    for group in (r"\x22 \x3c \x3e \x5e", r"\x60 \x7b \x7c \x7d"):
        escaped = ",".join(f"regsub([{byte}],%{byte[2:].upper()},g)" for byte in group.split())
        yield f"{_RULE} set-path '%[path,{escaped}]' if {RULED}"
    yield f"{_RULE} normalize-uri path-strip-dot if {RULED}"
    yield f"{_RULE} normalize-uri path-strip-dotdot full if {RULED}"


def _refuse_not_normal(refuse: str) -> Iterator[str]:
    yield f"{refuse} {{ path -m reg {_NOT_NORMAL} }}"
    yield f"{refuse} {{ path -m reg -i {_NEEDLESS} }}"


def _header(header: LookedAt, variable: str, refuse: str) -> Iterator[str]:
    """Two lines of the text: whether it is there, and its value if that is looked at.

    Several lines of it would then be read in more than one way; HAProxy itself makes one of HTTP/2's cookies.
    """
    name = words.header(header.name)
    found = f"{{ req.fhdr({name}) -m found }}"
    # Of every line. Applications cut some of them off.
    yield f"{refuse} {{ req.fhdr({name}) -m reg {_NO_SUBJECT if header.look == Look.PATTERN else _NO_VALUE} }}"
    yield f"{_RULE} set-var({variable}) str(-),concat({_LF}) if {RULED} ! {found}"
    if header.look == Look.PRESENCE:
        yield f"{_RULE} set-var({variable}) str(+),concat({_LF}) if {RULED} {found}"
        return
    yield f"{refuse} {{ req.fhdr_cnt({name}) gt 1 }}"
    yield f"{_RULE} set-var({LINE}) req.fhdr({name},1) if {RULED} {found}"
    yield f"{_RULE} set-var({variable}) str(+),concat({_LF},{LINE}) if {RULED} {found}"
