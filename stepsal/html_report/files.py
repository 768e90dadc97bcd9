"""What the page shows -> the page, and where one page cannot hold it, the files of its traces beside it.

In: a title and, one after the other, what the page needs of each map. Out: `PATH`, which is opened in a browser; and

PATH without its suffix, + `_files/`    a script for each trace, which hands its numbers to the page; only beyond `PAGE_LIMIT`

1. The text of a trace is data, never markup: JSON without any `<`, which the script puts in as text alone.
2. A content security policy lets no script run but the page's own, which is named by its hash, and no request out. A page with
   files beside it lets this script load others (`strict-dynamic`): a page that is opened from disk may read files in no
   other way. What else gets into the page still cannot run anything.
3. A page refers to its files by names that hold a hash of what is in them, and is put in place when they are all there. Then
   the files of an earlier page are removed. So the page that is there is whole at any moment.
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stepsal.files import atomic_path, exclusive_path
from stepsal.html_report.numbers import as_json
from stepsal.html_report.summary import Run

PAGE_LIMIT = 50_000_000
"""How many bytes of traces one page holds. A browser reads the whole of a page before it shows any of it: Chromium took
5 seconds of a core and 415 MB for 207 MB. And a page is something to send: few mail boxes take more than 50 MB."""

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = (
    *("state", "numbers", "views", "pens", "maps", "pointer", "steps", "depth", "run", "list", "save", "knockout"),
    *("beside", "address", "page"),
)
"""The parts of the page's script, in the order in which they are put together."""
_FILE = re.compile(r"\d{5,}-[0-9a-f]{16}\.js")
Numbers = Iterator[tuple[dict[str, Any], dict[str, Any]]]


def write_report(path: Path, title: str, maps: Numbers, *, beside: bool) -> None:
    """Write the page, with its traces inside, or in files beside it. It is written map by map, whole or not at all."""
    folder = folder_beside(path)
    with exclusive_path(path) as temporary:
        before = _files(folder)
        written: list[str] = []
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(_page(title, maps, folder if beside else None, written))
        except BaseException:
            _remove(folder, set(written) - before)
            raise
    _remove(folder, before - set(written))


def folder_beside(path: Path) -> Path:
    """Where the traces of a page are that cannot hold them itself."""
    return path.with_name(f"{path.stem}_files")


def _page(title: str, maps: Numbers, folder: Path | None, written: list[str]) -> Iterator[str]:
    """The parts of the page, each trace in one of its own; the names of files beside it are added to `written`."""
    css = (_PAGE / "page.css").read_text(encoding="utf-8")
    js = "".join((_PAGE / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    parts = {
        "css": css,
        "js": '"use strict";\n' + js,
        "loading": " 'strict-dynamic'" if folder else "",
    }
    for name in ("css", "js"):
        digest = hashlib.sha256(parts[name].encode()).digest()
        parts[f"{name}-hash"] = "sha256-" + base64.b64encode(digest).decode("ascii")
    template = (_PAGE / "page.html").read_text(encoding="utf-8")
    for index, part in enumerate(re.split(r"\{\{([a-z-]+)\}\}", template)):  # one pass: data stays data
        if index % 2 == 0:  # between two places to fill
            yield part
        elif part == "data":
            yield from _data(title, maps, folder, written)
        else:
            yield parts[part]


def _data(title: str, maps: Numbers, folder: Path | None, written: list[str]) -> Iterator[str]:
    """The traces, or the files that they go to; and then, since all of them must have been seen, the index."""
    run = Run()
    for number, (shown, entry) in enumerate(maps):
        content = as_json(shown)
        if folder is None:
            yield f'<script type="application/json" class="trace">{content}</script>\n'
        else:
            name = f"{number:05d}-{hashlib.sha256(content.encode()).hexdigest()[:16]}.js"
            with atomic_path(folder / name) as temporary:
                temporary.write_text(f"loadedTrace({number},{content});\n", encoding="ascii")
            written.append(name)
            entry = entry | {"file": f"{quote(folder.name)}/{name}"}
        run.add(shown, entry)
    index = {"title": title, "about": run.about(), "run": run.summary(), "traces": run.entries}
    yield f'<script type="application/json" id="data">{as_json(index)}</script>\n'


def _files(folder: Path) -> set[str]:
    """The names of the files in a folder that an earlier report may have written."""
    with suppress(OSError):
        return {each.name for each in folder.iterdir() if _FILE.fullmatch(each.name)}
    return set()


def _remove(folder: Path, names: set[str]) -> None:
    """Remove files of a report, and their folder where nothing else is in it."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if names:
        with suppress(OSError):
            folder.rmdir()
