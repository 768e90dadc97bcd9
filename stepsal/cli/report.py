"""`stepsal report`."""

import argparse
from pathlib import Path

from stepsal.cli import options

HELP = "one interactive HTML page of a folder's traces and step maps"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Write one HTML page with the text of every trace in DIR beside its step map, and a summary of all. It "
        "needs no network. Several folders, such as one before and one after an intervention, are shown together. Beyond 50 MB "
        "the traces are in files beside the page (docs/report.md).",
        example="stepsal report run -o report.html --knockouts run",
        interrupted=options.STARTS_ANEW.format("the page"),
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="what `stepsal saliency` or `stepsal demo` wrote"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="the page to write (default: report.html in the first DIR)"
    )
    parser.add_argument(
        "--heads", type=options.indices, help="heads to show one by one, such as 0,3 (default: only their mean)"
    )
    parser.add_argument(
        "--knockouts",
        type=Path,
        metavar="FOLDER",
        help="what `stepsal knockout` wrote of the same traces, shown beside the maps (default: none)",
    )
    parser.add_argument(
        "--trace", "--traces", nargs="+", dest="traces", metavar="ID", help="the traces to show (default: all)"
    )
    options.add_quiet(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.causality.folder import open_knockouts
    from stepsal.html_report.files import folder_beside
    from stepsal.html_report.report import report
    from stepsal.saliency.folder import choose_traces, open_step_maps

    out, progress = given.out or given.folders[0] / "report.html", not given.quiet
    options.check_out(out)
    maps = [stepmap for folder in given.folders for stepmap in open_step_maps(folder, progress=progress)]
    knockouts = [] if given.knockouts is None else open_knockouts(given.knockouts, progress=progress)
    if given.traces is not None:
        chosen = choose_traces(maps, given.traces, ", ".join(map(str, given.folders)))
        maps = [stepmap for stepmap in maps if stepmap in chosen]
        shown = {stepmap.meta.get("trace") for stepmap in maps}
        knockouts = [knockout for knockout in knockouts if knockout.meta.get("trace") in shown]
    path = report(out, maps, heads=given.heads, knockouts=knockouts)
    print(f"{path}   {len(maps)} trace{'s' * (len(maps) != 1)}, {options.file_size(path)}; open it in a browser")
    if (beside := folder_beside(path)).is_dir():
        print(f"{beside}   the traces, which the page loads: keep both together")
