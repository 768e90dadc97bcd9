"""The pages of the documentation site that are made from other files; a hook of mkdocs (`mkdocs.yml`, `make docs`).

In: the repository. Out: pages and pictures beside those of `docs/`, and links that lead to them.

- `README.md`, `CHANGELOG.md`, `CONTRIBUTING.md`, `SECURITY.md` and the bundled reasoner's page, as they are.
- The notebooks with the outputs that are in them; nothing is executed.
- A page of the Python reference for each folder with public names (`stepsal/__init__.pyi`).
- The help of every command, at the end of `docs/command_line.md`.

Links in all of these are written for GitHub, from file to file. Here a link to what the site has leads to its page, and a link
to any other file of the repository to that file on GitHub. A link to what is not there stops the build.
"""

import argparse
import ast
import base64
import json
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "stepsal/reasoner/README.md": "reasoner.md",
}
MODULES = ("plot", "reasoner", "formats")  # public as modules
ALSO = {"diagnosis": "stepsal.diagnosis.metrics"}  # what a page has beside the public names: here the formulas


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that are not in `docs/`."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for path in sorted(ROOT.glob("figures/*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for name, content in notebook(path).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for folder, names in public_names().items():
        files.append(File.generated(config, f"api/{folder}.md", content=api(folder, names)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead where they lead on GitHub."""
    uri = page.file.src_uri
    if uri.startswith("api/"):
        return markdown
    if uri == "command_line.md":
        markdown += commands()
    source = next((path for path, made in PAGES.items() if made == uri), None)
    if source is None:
        source = uri.removesuffix(".md") + ".ipynb" if uri.startswith("notebooks/") else f"docs/{uri}"

    def link(match: re.Match[str]) -> str:
        target, anchor = match.groups()
        return f"]({moved(target, source, uri, files)}{anchor or ''})"

    # Code is left alone, and in a table a bar in code needs a backslash on GitHub and none here.
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.DOTALL | re.MULTILINE)
    for index, part in enumerate(parts):
        parts[index] = part.replace(r"\|", "|") if index % 2 else re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", link, part)
    return "".join(parts)


def moved(target: str, source: str, uri: str, files: Files) -> str:
    """Where a link of the file `source`, which is the page `uri`, leads: from page to page, or to GitHub."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path.startswith("notebooks/") and path.endswith(".ipynb"):
        there = path.removesuffix(".ipynb") + ".md"
    else:
        there = PAGES.get(path, path.removeprefix("docs/"))
    if files.get_file_from_path(there) is not None:
        return posixpath.relpath(there, posixpath.dirname(uri) or ".")
    if source.endswith(".ipynb") and "/" not in target:
        return target  # a picture of the notebook's own
    if not (ROOT / path).exists():
        raise PluginError(f"{source} links to {target}, which is not in the repository")
    return f"https://github.com/stepsal/stepsal/blob/main/{path}"


def notebook(path: Path) -> dict[str, str | bytes]:
    """A notebook as Markdown, with what it has put out, and its pictures, by the names of their files."""
    text, pictures = [], {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        text.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            shown = {
                kind: "".join(lines) for kind, lines in output.get("data", {}).items() if isinstance(lines, list | str)
            }
            if "image/png" in shown:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(shown["image/png"])
                text.append(f"![What the cell above draws]({name})")
            elif "text/html" in shown or "text/markdown" in shown:
                text.append(shown.get("text/html") or shown["text/markdown"])
            else:
                plain = "".join(output.get("text", shown.get("text/plain", "")))
                text.append(f"```text\n{plain.rstrip()}\n```")
    return {f"{path.stem}.md": "\n\n".join(text), **pictures}


def public_names() -> dict[str, list[str]]:
    """The public names of stepsal by the folder, or the module, that defines them."""
    names: dict[str, list[str]] = {module: [f"stepsal.{module}"] for module in MODULES}
    for statement in ast.parse((ROOT / "stepsal/__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module != "_version":
            folder = statement.module.partition(".")[0]
            names.setdefault(folder, []).extend(f"stepsal.{alias.name}" for alias in statement.names)
    return names


def api(folder: str, names: list[str]) -> str:
    """The page of a folder: what it is for, then each of its public names."""
    file = ROOT / "stepsal" / folder
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    title, _, text = docstring.partition("\n")[0].partition(": ")
    lines = [f"# `stepsal.{folder}`" if folder in MODULES else f"# {title}", "", text[:1].upper() + text[1:], ""]
    for name in [*names, *([ALSO[folder]] if folder in ALSO else [])]:
        lines += [f"::: {name}", ""]
    return "\n".join(lines)


def commands() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = "86"  # fits into the page
    from stepsal.cli import COMMANDS, options

    text = ["", "## The commands", ""]
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"stepsal {name}", formatter_class=options.HelpFormatter)
        command.add(parser)
        nested = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        for each in nested[0].values() if nested else [parser]:
            text += [f"### {each.prog}", "", command.HELP, "", "```text", each.format_help().rstrip(), "```", ""]
    return "\n".join(text)


class Docstrings(griffe.Extension):
    """Docstrings as griffe reads them: examples are code, and what is said of several parameters at once is said of each."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", obj.docstring.value, flags=re.MULTILINE)
        obj.docstring.value = re.sub(
            r"^( +)(\w+(?:, \w+)+):( .*(?:\n\1 +.*)*)", each_parameter, text, flags=re.MULTILINE
        )


def each_parameter(match: re.Match[str]) -> str:
    """`a, b: text` as `a: text` and, below it, a line that sends the reader of `b` there."""
    indent, names, text = match.groups()
    first, *others = names.split(", ")
    return "\n".join([f"{indent}{first}:{text}", *(f"{indent}{name}: see `{first}`." for name in others)])
