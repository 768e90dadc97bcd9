"""Short traces that share a pass, beside each alone: `python benchmarks/short_traces.py`.

Random tokens through the bundled reasoner, on one thread: the step maps of `--traces` traces of each of the lengths, each trace
alone (`stepsal.step_saliency`) and in the groups in which `stepsal saliency` makes them (`stepsal.saliency.recipe.passes`), in
turn. Other processes may be at work on the machine, so what is measured is the processor's time, the least of `--turns`. The
table has the milliseconds for a trace, and the largest difference between the maps, relative to the largest number of a map.
"""

import argparse
import itertools
import time


def main() -> None:
    import torch

    from stepsal import Step, Trace, load_model, step_saliency
    from stepsal.saliency.influence import saliency_together
    from stepsal.saliency.recipe import passes

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--traces", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model()

    def make(length: int, seed: int) -> Trace:
        tokens = torch.randint(5, 300, (length,), generator=torch.Generator().manual_seed(seed))
        bounds = [0, *range(length // 8, length - 10, 20), length]
        pairs = enumerate(itertools.pairwise(bounds))
        steps = (Step(i, "thinking" if i else "question", start, stop, "") for i, (start, stop) in pairs)
        return Trace(tokens, tuple(steps), "")

    print("| tokens | traces in a pass | ms alone | ms together | times as many | largest difference |")
    print("|---|---|---|---|---|---|")
    for length in given.tokens:
        traces = [make(length - index % 5, index) for index in range(given.traces)]
        groups = passes([len(trace.tokens) for trace in traces])
        spent: dict[str, list[float]] = {"alone": [], "together": []}
        for _ in range(given.turns):
            begun = time.process_time()
            alone = [step_saliency(model, trace).mass for trace in traces]
            spent["alone"].append(time.process_time() - begun)
            begun, together = time.process_time(), {}
            for group in groups:
                maps = saliency_together(model, [traces[index] for index in group])
                together |= {index: each.mass for index, each in zip(group, maps, strict=True)}
            spent["together"].append(time.process_time() - begun)
        errors = [(together[index] - mass).abs().max() / mass.abs().max() for index, mass in enumerate(alone)]
        one, shared = (1000 * min(spent[name]) / len(traces) for name in ("alone", "together"))
        cells = [length, len(groups[0]), f"{one:.1f}", f"{shared:.1f}", f"{one / shared:.2f}", f"{max(errors):.1e}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
