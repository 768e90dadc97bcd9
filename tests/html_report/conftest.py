"""A browser for the tests of the page; where there is none they are skipped."""

import shutil

import pytest

from stepsal import report


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a report; at the end of the test: nothing on the console, no request but for its own files, no dialog."""
    pages, seen = [], []

    def open_report(stepmaps, width=1280, height=900, address="", theme="light", touch=False, **options):
        path = report(tmp_path / "report.html", stepmaps, **options)
        allowed = (path.as_uri(), path.with_name("report_files").as_uri() + "/", "blob:")
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=theme, has_touch=touch, accept_downloads=True
        )
        page.set_default_timeout(120_000)  # a machine may be busy
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(allowed) else seen.append(request.url))
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri() + address)
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.evaluate("new Promise((done) => setTimeout(done, 50))")
        page.close()
    assert seen == []
