"""The documents' relative links and anchors, and the site's menu."""

import os
import re

import pytest

from tests.pages import PAGES, ROOT

CODE = re.compile(r"^```\w*\n.*?^```$", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
LINK = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")


def text_of(page: str) -> str:
    """The page, with the files that it includes (`--8<--`), without its code blocks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = INCLUDED.sub(lambda included: (ROOT / included[1]).read_text(encoding="utf-8"), text)
    return CODE.sub("", text)


def anchors(page: str) -> set[str]:
    """The names of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.+?) *$", text_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()) for heading in headings]
    return {re.sub(r"[ ]", "-", heading.strip()) for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    wrong = []
    for target in LINK.findall(text_of(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        if not place.exists():
            wrong.append(f"{target}: no such file")
        elif page.startswith("docs/") and not place.resolve().is_relative_to(ROOT / "docs"):
            wrong.append(f"{target}: not on the site, name the file in `code` instead")
        elif anchor and place.suffix == ".md" and "/reference/" not in place.as_posix():
            if anchor not in anchors(os.path.relpath(place, ROOT)):
                wrong.append(f"{target}: no such heading")
    assert not wrong


def test_no_page_is_forgotten():
    """Each page below docs/ is in the site's menu, and the menu has no other."""
    # A page of yours is missing? Give it a line under `nav` in mkdocs.yml.
    menu = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert menu == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
