"""No page of the built site scrolls sideways on a phone, and none fails to load what it needs.

    python .ci/phone.py build/site [--screenshots FOLDER]

Needs playwright (PyPI) and a Chromium on the PATH. Wide tables and code scroll inside their own boxes, which is
allowed.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

WIDTH, HEIGHT = 390, 844  # CSS pixels of a common phone


def overflow(browser: Browser, page_file: Path, folder: Path | None, site: Path) -> int:
    """Pixels by which a page is wider than the screen; writes its picture into the folder if there is one."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(page_file.as_uri(), wait_until="load")
    wider = int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
    if folder is not None:
        name = "-".join(page_file.relative_to(site).with_suffix(".png").parts)
        page.screenshot(path=folder / name, full_page=True)
    page.close()
    return wider


def main() -> int:
    """Exit status of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("--screenshots", type=Path)
    arguments = parser.parse_args()
    site = arguments.site.resolve()
    if arguments.screenshots is not None:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    executable = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        wide = {
            page.relative_to(site): pixels
            for page in sorted(site.rglob("*.html"))
            if (pixels := overflow(browser, page, arguments.screenshots, site)) > 0
        }
        browser.close()
    for page, pixels in wide.items():
        print(f"{page} is {pixels} px wider than a screen of {WIDTH}")
    return int(bool(wide))


if __name__ == "__main__":
    sys.exit(main())
