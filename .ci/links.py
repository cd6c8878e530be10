"""Every link of the built site that stays within it leads to a file and, where it names one, to a place in it.

    python .ci/links.py build/site

Prints the dead ones and exits with 1 if there are any. Links to other sites are not followed.
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Places and links of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of what the tag names and where it leads."""
        values = {name: value for name, value in attrs if value is not None}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        self.links += [values[name] for name in ("href", "src") if name in values]


@cache
def read(path: Path) -> Page:
    """A page; each is read once."""
    return Page(path.read_text(encoding="utf-8"))


def fault(page: Path, link: str) -> str | None:
    """What is wrong with a link of a page; None if nothing is, or if it leads elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
    if not target.is_file():
        return "no such file"
    place = unquote(parts.fragment)
    if place and target.suffix == ".html" and place not in read(target).places:
        return "no such place"
    return None


def main() -> int:
    """Exit status of the script."""
    site = Path(sys.argv[1]).resolve()
    pages = sorted(site.rglob("*.html"))
    dead = [
        f"{page.relative_to(site)}: {link}: {wrong}"
        for page in pages
        for link in dict.fromkeys(read(page).links)
        if (wrong := fault(page, link)) is not None
    ]
    print("\n".join(dead) or f"{len(pages)} pages, no dead link")
    return int(bool(dead) or not pages)


if __name__ == "__main__":
    sys.exit(main())
