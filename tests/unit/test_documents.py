"""What the documents point at exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hcc.cli.commands import COMMANDS
from hcc.haproxy.capabilities import OLDEST

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
NAMES = {command.name for commands in COMMANDS.values() for command in commands}


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name) if name else document
        assert path.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_ours_that_is_named_exists(document: Path) -> None:
    for name in re.findall(r"`((?:hcc|tests|deploy|docs)/[\w./@-]+)`", document.read_text()):
        assert (ROOT / name).exists(), f"{document.name} names {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_named_exists(document: Path) -> None:
    named = set(re.findall(r"(?:^ {4}|`)hcc ([a-z][a-z-]+)", document.read_text(), re.MULTILINE))
    assert named <= NAMES, f"{document.name} names {named - NAMES}"


@pytest.mark.parametrize("name", ["README.md", "docs/quick-start.md", "docs/migration.md"])
def test_the_oldest_haproxy_is_the_one_that_is_taken(name: str) -> None:
    told = re.findall(
        r"HAProxy(?:\.\*\*| with OpenSSL and SPOE \|)? (\d\.\d+) (?:or|and) newer", (ROOT / name).read_text()
    )
    assert told[:1] == [OLDEST.branch]


def test_the_readme_leads_to_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [path.name for path in DOCUMENTS if path.name != "README.md" and path.name not in text]
    assert not missing
