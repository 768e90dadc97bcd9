"""`stepsal report`."""

import argparse
from pathlib import Path

from stepsal.cli import options

HELP = "one interactive HTML page of a folder's traces and step maps"


def add(parser: argparse.ArgumentParser) -> None:
    options.describe(
        parser,
        run,
        description="Write one HTML page with the text of every trace in DIR beside its step map. It needs no network.",
        example="stepsal report run -o report.html",
        interrupted=options.STARTS_ANEW.format("the page"),
    )
    options.add_maps_folder(parser)
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="the page to write (default: DIR/report.html)")
    parser.add_argument(
        "--heads", type=options.indices, help="heads to show one by one, such as 0,3 (default: only their mean)"
    )
    parser.add_argument(
        "--trace", "--traces", nargs="+", dest="traces", metavar="ID", help="the traces to show (default: all)"
    )
    options.add_quiet(parser)
    options.add_plugins(parser)


def run(given: argparse.Namespace) -> None:
    from stepsal.html_report.report import report
    from stepsal.saliency.folder import choose_traces, open_step_maps

    options.check_out(given.out or given.folder / "report.html")
    maps = open_step_maps(given.folder, progress=not given.quiet)
    if given.traces is not None:
        chosen = choose_traces(maps, given.traces, given.folder)
        maps = [stepmap for stepmap in maps if stepmap in chosen]
    path = report(given.out or given.folder / "report.html", maps, heads=given.heads)
    print(f"{path}   {len(maps)} trace{'s' * (len(maps) != 1)}, {options.file_size(path)}; open it in a browser")
