"""`stepsal report`."""

import argparse
from pathlib import Path

from stepsal.cli import options
from stepsal.errors import InputError


def add(commands: "options.Commands") -> None:
    parser = commands.add_parser(
        "report",
        parents=[options.maps_folder(), options.plugins()],
        help="one interactive HTML page of a folder's traces and step maps",
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: DIR/report.html")
    parser.add_argument(
        "--heads", type=options.indices, default=None, help="single heads to embed, such as 0,3 (default: the mean)"
    )
    parser.add_argument("--traces", nargs="+", metavar="ID", default=None, help="these traces only")
    parser.set_defaults(run=run, interrupted=options.STARTS_ANEW.format("the page"))


def run(given: argparse.Namespace) -> None:
    from stepsal.html_report.report import report
    from stepsal.saliency.folder import open_step_maps

    options.check_out(given.out or given.folder / "report.html")
    maps = open_step_maps(given.folder, progress=True)
    if given.traces is not None:
        ids = [stepmap.meta.get("trace") for stepmap in maps]
        if missing := [wanted for wanted in given.traces if wanted not in ids]:
            raise InputError(
                f"there is no trace {missing[0]!r} in {given.folder}: it holds {', '.join(map(str, ids[:5]))}, ..."
            )
        maps = [stepmap for stepmap in maps if stepmap.meta.get("trace") in given.traces]
    path = report(given.out or given.folder / "report.html", maps, heads=given.heads)
    megabytes = path.stat().st_size / 1e6
    print(f"{path}   {len(maps)} trace{'s' * (len(maps) != 1)}, {megabytes:.1f} MB; open it in a browser")
