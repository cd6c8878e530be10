"""The search of the built site finds the page of each flag and of each option.

    python .ci/search.py build/site

Needs Sphinx, whose index and stemmer the search in a browser uses.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from sphinx.search.en import SearchEnglish

PAGES = ("reference/flags", "reference/options")


def index_of(site: Path) -> dict[str, object]:
    """The index that the site's search reads."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    return json.loads(text[text.index("(") + 1 : text.rindex(")")])


def missed(index: dict, page: str, names: set[str]) -> list[str]:
    """The names that a search for them does not lead to the page."""
    stem, number = SearchEnglish({}).stem, index["docnames"].index(page)
    places = {}
    for word in ("terms", "titleterms"):
        for term, pages in index[word].items():
            places.setdefault(term, set()).update([pages] if isinstance(pages, int) else pages)
    return sorted(name for name in names if number not in places.get(stem(name.lower()), set()))


def main() -> int:
    """Print what is not found; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site
    index, lost = index_of(site), []
    for page in PAGES:
        text = Path("vignettes", f"{page}.md").read_text(encoding="utf-8")
        heads = re.findall(r"^(`.*)\n: ", text, re.MULTILINE)  # the terms of definition lists
        names = {name for head in heads for name in re.findall(r"`\"?(\w+)\"?`", head)}
        lost += [f"{page}: {name}" for name in missed(index, page, names)]
        print(f"{len(names)} names of {page}, {len(lost)} not found so far")
    print("\n".join(lost))
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
