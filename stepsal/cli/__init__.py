"""The `stepsal` command.

Exit status: 0 done; 1 failed while working, interrupted, or (`traces convert`) not all read; 2 what was given cannot be used as
it is: an option, the traces, the model or the output folder. Then nothing was computed in vain, and the message says what to
change.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepsal.errors import FileError, InputError, StepsalError, UnsupportedModelError

_MAP_HELP = "for a model larger than one GPU: 'auto' or 'balanced', in the place of --device"
_MAP_FIGURES = ("tokens", "maps", "profiles", "heads", "forest")
_SWEEP_FIGURES = ("ablation", "effects", "grid", "strength", "compute", "difficulty")


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        return given.run(given) or 0
    except KeyboardInterrupt:
        print(
            "stepsal: interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr
        )
        return 1
    except (InputError, FileError, UnsupportedModelError) as error:
        print(f"stepsal: {error}", file=sys.stderr)
        return 2
    except StepsalError as error:
        print(f"stepsal: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from stepsal._version import __version__

    parser = argparse.ArgumentParser(prog="stepsal", description="Step-to-step saliency maps of reasoning models.")
    parser.add_argument("--version", action="version", version=f"stepsal {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the bundled reasoner's step maps, right against wrong (no network)")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for traces, maps and figures")
    demo.add_argument("--problems", type=_positive, default=128, help="how many test problems (default: %(default)s)")
    demo.set_defaults(run=_demo)

    generate = commands.add_parser(
        "generate",
        help="answers as traces, with StepFlow or without",
        description="Answer problems and write the traces, graded where the answers are known. Run again after an interrupt.",
    )
    generate.add_argument(
        "problems",
        metavar="PROBLEMS",
        help='a JSONL file of {"prompt", "answer"?, "id"?}, or how many test problems of the bundled task',
    )
    generate.add_argument("--out", type=Path, required=True, metavar="TRACES.jsonl")
    generate.add_argument("--model", default=None, metavar="NAME_OR_DIR", help="default: the bundled reasoner")
    generate.add_argument(
        "--oeb", nargs="?", type=float, const=0.15, metavar="TAU_MAX", help="odds-equal bridge (0.15)"
    )
    generate.add_argument("--smi", nargs="?", type=float, const=0.06, metavar="ALPHA", help="step momentum (0.06)")
    generate.add_argument(
        "--layers",
        nargs="+",
        type=_of_part(_layers),
        default=[],
        metavar="LAYERS",
        help="shallow, deep, all or indices, for the parts given; or for one: oeb=0,1 smi=deep (default: shallow, deep)",
    )
    generate.add_argument(
        "--heads", nargs="+", type=_of_part(_indices), default=[], metavar="HEADS", help="likewise: 0,3 or oeb=0,3"
    )
    generate.add_argument("--max-new-tokens", type=_positive, default=None, help="default: 512, or what the task needs")
    generate.add_argument("--batch-size", type=_positive, default=8)
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.add_argument("--top-p", type=float, default=1.0)
    generate.add_argument("--samples", type=_positive, default=1, help="answers to each problem")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--format", default="auto", help="auto, think, harmony or plain")
    generate.add_argument("--steps", default="auto", help="auto, paragraph, sentence or line")
    generate.add_argument("--device", default="auto")
    generate.add_argument("--device-map", metavar="MAP", help=_MAP_HELP)
    generate.add_argument("--dtype", default="auto")
    generate.set_defaults(run=_generate)

    traces = commands.add_parser("traces", help="traces of other tools to ours").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    convert = traces.add_parser(
        "convert",
        help="logs of servers, batches and chats to one file of traces",
        description="Write one file of traces, and say why of each line that gave none; then the exit status is 1.",
    )
    convert.add_argument("files", nargs="+", metavar="IN.jsonl", help="a batch's requests and results: both files")
    convert.add_argument("--out", type=Path, required=True, metavar="TRACES.jsonl", help="replaced if it is there")
    convert.add_argument(
        "--model", required=True, metavar="NAME_OR_DIR", help="whose tokenizer and chat template to use"
    )
    convert.add_argument("--format", default="auto", help="auto, think, harmony or plain")
    convert.add_argument("--steps", default="auto", help="auto, paragraph, sentence or line")
    convert.set_defaults(run=_convert)

    saliency = commands.add_parser(
        "saliency",
        help="step maps of your own traces and model",
        description="Compute the step map of each trace. Run again after an interrupt: finished maps are kept.",
    )
    saliency.add_argument("traces", type=Path, metavar="TRACES.jsonl", help="one trace a line (see docs/method.md)")
    saliency.add_argument(
        "--model", required=True, metavar="NAME_OR_DIR", help="hub id or local Hugging Face directory"
    )
    saliency.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the maps")
    saliency.add_argument("--objective", default="token", choices=["token", "sequence"])
    saliency.add_argument("--rule", default="abs", choices=["abs", "signed", "grad", "attention"])
    saliency.add_argument("--layers", default="all", type=_layers, help="all, shallow, deep or indices such as 0,3,7")
    saliency.add_argument("--chunk", default="auto", type=_chunk, help="query positions per pass (default: auto)")
    saliency.add_argument(
        "--format", default=None, help="auto, think, harmony or plain (default: as the file says, or auto)"
    )
    saliency.add_argument("--steps", default=None, help="auto, paragraph, sentence or line (default: likewise)")
    saliency.add_argument("--device", default="auto")
    saliency.add_argument("--device-map", metavar="MAP", help=_MAP_HELP)
    saliency.add_argument("--dtype", default="auto")
    saliency.add_argument("--skip-broken", action="store_true", help="read the other lines of a file with broken ones")
    saliency.set_defaults(run=_saliency)

    diagnose = commands.add_parser(
        "diagnose",
        help="metrics and verdicts of each trace's step map",
        description="Judge each step map in DIR. Writes DIR/diagnosis.jsonl, a line per trace, and prints a summary.",
    )
    _folder(diagnose)
    diagnose.add_argument(
        "--reference", type=Path, metavar="DIR2", help="judge against the correct traces of this folder (same model)"
    )
    diagnose.set_defaults(run=_diagnose)

    compare = commands.add_parser(
        "compare",
        help="correct against wrong traces, with intervals and controls",
        description="Compare the correct with the wrong traces of DIR. Writes DIR/comparison.json and prints its table.",
    )
    _folder(compare)
    _graded(compare)
    compare.add_argument(
        "--resamples", type=_positive, default=2000, help="bootstrap and permutations (default: %(default)s)"
    )
    compare.add_argument("--seed", type=int, default=0)
    compare.set_defaults(run=_compare)

    sweep = commands.add_parser(
        "sweep",
        help="many settings of StepFlow on the same problems, resumable",
        description="Run the sweep that CONFIG.toml describes. Run again after whatever stopped it: it goes on from there.",
    )
    sweep.add_argument("config", type=Path, metavar="CONFIG.toml", help="model, problems, decoding, grid")
    sweep.add_argument("--out", type=Path, default=None, metavar="DIR", help="folder for the rows and results.parquet")
    sweep.add_argument("--engine", default="local", choices=["local", "ray"])
    sweep.add_argument("--workers", type=_positive, default=None, help="models at work (default: what is there allows)")
    sweep.add_argument("--address", default=None, help="of an existing Ray cluster, such as auto or ray://host:10001")
    sweep.add_argument(
        "--dry-run", action="store_true", help="print settings, number of answers and time; write nothing"
    )
    sweep.set_defaults(run=_sweep)

    figure = commands.add_parser("figure", help="a figure for a paper, from a folder of results (PNG, PDF, caption)")
    figure.add_argument(
        "name",
        choices=[*_MAP_FIGURES, *_SWEEP_FIGURES, "before_after"],
        metavar="NAME",
        help=f"of step maps: {', '.join(_MAP_FIGURES)}; of a sweep: {', '.join(_SWEEP_FIGURES)}; of two folders of step maps: "
        "before_after",
    )
    figure.add_argument("folder", type=Path, metavar="DIR", help="what `stepsal saliency`, `demo` or `sweep` wrote")
    figure.add_argument(
        "second", type=Path, nargs="?", metavar="DIR2", help="before_after: after; compute: a sweep with samples"
    )
    figure.add_argument("--out", type=Path, required=True, metavar="FILE", help="its PDF and caption go beside it")
    figure.set_defaults(run=_figure)

    report = commands.add_parser("report", help="one interactive HTML page of a folder's traces and step maps")
    _folder(report)
    report.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: DIR/report.html")
    report.add_argument(
        "--heads", type=_indices, default=None, help="single heads to embed, such as 0,3 (default: the mean)"
    )
    report.add_argument("--traces", nargs="+", metavar="ID", default=None, help="these traces only")
    report.set_defaults(run=_report)
    return parser


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `stepsal saliency` or `stepsal demo` wrote")


def _graded(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--traces", type=Path, default=None, metavar="TRACES.jsonl", help='"correct" by id, where the maps do not say'
    )


def _demo(given: argparse.Namespace) -> None:
    _calm()
    from stepsal.demo import run_demo

    print(run_demo(given.out, given.problems))


def _generate(given: argparse.Namespace) -> None:
    _calm()
    from stepsal.generation.files import generate_file, refuse_existing
    from stepsal.generation.generate import Decoding
    from stepsal.generation.questions import read_questions, task_questions, task_room
    from stepsal.interventions import OddsEqualBridge, StepMomentum
    from stepsal.models.loading import load_model
    from stepsal.reasoner import DEFAULT_LENGTH

    places: dict[str, dict[str, Any]] = {"oeb": {}, "smi": {}}
    for name in ("layers", "heads"):
        for part, value in getattr(given, name):
            if part and getattr(given, part) is None:
                raise InputError(f"--{name} {part}=... is for --{part}, which is not given")
            for each in [part] if part else places:
                if name in places[each]:
                    raise InputError(f"--{name} has two values for {each}: write several indices as 0,1")
                places[each][name] = value
    if (given.layers or given.heads) and given.oeb is None and given.smi is None:
        raise InputError("--layers and --heads say where --oeb and --smi act: give one of them")
    parts: list[OddsEqualBridge | StepMomentum] = []
    if given.oeb is not None:
        parts.append(OddsEqualBridge(tau_max=given.oeb, **places["oeb"]))
    if given.smi is not None:
        parts.append(StepMomentum(alpha=given.smi, **places["smi"]))
    room = given.max_new_tokens
    if given.problems.isdecimal():
        if int(given.problems) == 0:
            raise InputError("0 problems: give how many, at least 1, or a JSONL file")
        questions = task_questions("test", [DEFAULT_LENGTH], int(given.problems))
        room = room or task_room([DEFAULT_LENGTH])
    else:
        questions = read_questions(Path(given.problems), graded=False)
    refuse_existing(given.out)  # before minutes of loading weights
    decoding = Decoding(room or 512, given.batch_size, given.temperature, given.top_p, given.samples, given.seed)
    model = load_model(given.model, device=given.device, dtype=given.dtype, device_map=given.device_map)
    traces = generate_file(model, questions, given.out, decoding, parts, format=given.format, steps=given.steps)
    graded = [trace.correct for trace in traces if trace.correct is not None]
    said = f", {sum(graded)} of {len(graded)} right ({sum(graded) / len(graded):.1%})" if graded else ""
    print(f"{given.out}   {len(traces)} trace{'s' * (len(traces) != 1)}{said}")


def _convert(given: argparse.Namespace) -> int:
    _calm()
    from stepsal.models.tokenizers import load_tokenizer
    from stepsal.traces.convert import convert_traces

    result = convert_traces(given.files, given.out, load_tokenizer(given.model), format=given.format, steps=given.steps)
    for each in result.unread:
        print(f"stepsal: {each}", file=sys.stderr)
    print(result if result.written else f"no trace in these files: {given.out} is not written")
    return 1 if result.unread or not result.written else 0


def _saliency(given: argparse.Namespace) -> None:
    _calm()
    from stepsal.models.loading import load_model
    from stepsal.models.tokenizers import load_tokenizer
    from stepsal.saliency.folder import save_step_maps
    from stepsal.traces.files import read_traces

    chosen = {name: getattr(given, name) for name in ("format", "steps") if getattr(given, name) is not None}
    # The traces first: a broken line shows at once, not after minutes of loading weights.
    tokenizer = load_tokenizer(given.model)
    traces = read_traces(given.traces, tokenizer, on_error="skip" if given.skip_broken else "raise", **chosen)
    if not traces:
        raise InputError(f"{given.traces} holds no trace. Give one JSON object a line, with 'prompt' and 'response'.")
    model = load_model(given.model, device=given.device, dtype=given.dtype, device_map=given.device_map)
    paths = save_step_maps(
        model, traces, given.out, objective=given.objective, rule=given.rule, layers=given.layers, chunk=given.chunk
    )
    print(f"{len(paths)} step map{'s' * (len(paths) != 1)} in {given.out}/maps (stepsal.StepMap.load)")


def _diagnose(given: argparse.Namespace) -> None:
    from stepsal.diagnosis.diagnosis import diagnose, summarise, write_diagnoses
    from stepsal.saliency.folder import group_maps, load_step_maps

    maps = load_step_maps(given.folder, progress=True)
    reference = None
    if given.reference is not None:
        reference = [diagnose(each) for each in group_maps(load_step_maps(given.reference, progress=True))["correct"]]
    diagnoses = [diagnose(each, reference=reference) for each in maps]
    write_diagnoses(given.folder / "diagnosis.jsonl", diagnoses)
    print(f"{summarise(diagnoses)}\n\n{given.folder}/diagnosis.jsonl   a line per trace")


def _compare(given: argparse.Namespace) -> None:
    from stepsal.diagnosis.comparison import compare
    from stepsal.saliency.folder import group_maps, load_step_maps
    from stepsal.traces.files import read_grades

    graded = None if given.traces is None else read_grades(given.traces)
    groups = group_maps(load_step_maps(given.folder, progress=True), graded)
    result = compare(groups["correct"], groups["wrong"], resamples=given.resamples, seed=given.seed)
    result.save(given.folder / "comparison.json")
    print(f"{result.summary()}\n\n{given.folder}/comparison.json   all of it (stepsal.Comparison.load)")


def _sweep(given: argparse.Namespace) -> None:
    _calm()
    from stepsal.sweeps.run import estimate, run_sweep

    if given.dry_run:
        print(estimate(given.config, given.engine, given.workers, given.address))
        return
    if given.out is None:
        raise InputError("--out DIR is needed: the folder for the rows (or --dry-run, to see what would be done)")
    table = run_sweep(given.config, given.out, given.engine, True, given.workers, given.address)
    print(f"{table}\n\n{given.out}/results.parquet   a row per answer (pandas.read_parquet)")


def _figure(given: argparse.Namespace) -> None:
    from stepsal.figures.save import save_figure

    for path in save_figure(given.name, given.folder, given.out, second=given.second):
        print(path)


def _report(given: argparse.Namespace) -> None:
    from stepsal.html_report.report import report
    from stepsal.saliency.folder import load_step_maps

    maps = load_step_maps(given.folder, progress=True)
    if given.traces is not None:
        names = [each.meta.get("trace") for each in maps]
        if missing := [name for name in given.traces if name not in names]:
            raise InputError(
                f"there is no trace {missing[0]!r} in {given.folder}: it holds {', '.join(map(str, names[:5]))}, ..."
            )
        maps = [each for each in maps if each.meta.get("trace") in given.traces]
    path = report(given.out or given.folder / "report.html", maps, heads=given.heads)
    print(
        f"{path}   {len(maps)} trace{'s' * (len(maps) != 1)}, {path.stat().st_size / 1e6:.1f} MB; open it in a browser"
    )


def _calm() -> None:
    """Two threads at most on the CPU of a laptop, and no progress bars but our own."""
    import torch

    from stepsal.models import quiet

    quiet()
    torch.set_num_threads(min(2, torch.get_num_threads()))


def _of_part(read: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """A value for all parts of StepFlow (part ""), or with `oeb=` or `smi=` before it for one."""

    def value(text: str) -> tuple[str, Any]:
        part, equals, rest = text.partition("=")
        if equals and part not in ("oeb", "smi"):
            raise argparse.ArgumentTypeError(f"{text!r}: a part is oeb or smi, as in oeb=0,1")
        return (part, read(rest)) if equals else ("", read(text))

    return value


def _positive(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 1")
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _chunk(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a whole number")
    return text if text == "auto" else _positive(text)


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of indices such as 0,3,7") from error


def _layers(text: str) -> str | list[int]:
    if text.isalpha():
        return text  # a name: whether there is such a band, the model says
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a band nor indices such as 0,3,7") from error
