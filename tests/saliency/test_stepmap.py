import hashlib
import json
import os
import struct
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import make_map, make_steps, random_map, unchecked
from hypothesis import given
from hypothesis import strategies as st
from reference import mean_over_whole_blocks, pool_by_loops
from safetensors.torch import save_file

from stepsal import FileError, InputError, StepMap, Trace
from stepsal.files import atomic_path
from stepsal.saliency.mapfile import write_map
from stepsal.saliency.stepmap import in_precision

# Steps of 2, 1 and 3 tokens. The last token is no query, so the rows have 2, 1 and 2 queries.
PAIRS = [[3, 0, 0], [2, 1, 0], [4, 2, 3]]
MASS = [[6.0, 0, 0], [1, 3, 0], [2, 0, 6]]


def by_hand(mass=MASS, **meta):
    mass = torch.tensor(mass)
    return StepMap(
        mass[(None,) * (4 - mass.ndim)], torch.tensor(PAIRS), make_steps("qts", [2, 1, 3]), (5,), {"model": "m"} | meta
    )


def two_heads(**meta):
    return by_hand([[MASS, [[0.0, 0, 0], [3, 1, 0], [4, 2, 2]]]], **meta)


def test_density_is_mass_per_pair_and_nan_where_no_pair_is():
    nan = torch.nan
    expected = torch.tensor([[2, nan, nan], [0.5, 3, nan], [0.5, 0, 2]])
    torch.testing.assert_close(by_hand().density()[0, 0], expected, equal_nan=True, rtol=0, atol=0)


def test_density_of_a_last_step_of_one_token_is_nan():
    stepmap = make_map("qt", [3, 1], torch.ones(2, 2))
    assert stepmap.pairs.tolist() == [[6, 0], [0, 0]]
    assert torch.isnan(stepmap.density()[0, 0, 1]).all()
    assert torch.isnan(stepmap.share()[0, 0, 1]).all()


def test_density_with_the_noncausal_half_divides_by_whole_blocks():
    expected = torch.tensor([[6 / 4, 0, 0], [1 / 2, 3, 0], [2 / 6, 0, 6 / 9]])
    torch.testing.assert_close(by_hand().density(noncausal=True)[0, 0], expected)


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_density_with_the_noncausal_half_equals_a_loop_over_whole_blocks(sizes, seed):
    total, steps = sum(sizes), make_steps("q" + "t" * (len(sizes) - 1), sizes)
    influence = torch.tril(torch.rand(2, 3, total, total, generator=torch.Generator().manual_seed(seed)))
    influence[:, :, -1] = 0
    mass = pool_by_loops(influence, Trace(torch.arange(total), steps, ""))
    stepmap = StepMap(mass, torch.zeros(len(sizes), len(sizes), dtype=torch.long), steps, (0, 1), {})
    torch.testing.assert_close(stepmap.density(noncausal=True), mean_over_whole_blocks(influence, steps))


def test_share_is_the_part_of_the_row():
    expected = torch.tensor([[1, 0, 0], [0.25, 0.75, 0], [0.25, 0, 0.75]])
    assert torch.equal(by_hand().share()[0, 0], expected)


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=7), seed=st.integers(0, 99))
def test_share_rows_sum_to_one_wherever_a_row_has_a_query(sizes, seed):
    stepmap = random_map("q" + "t" * (len(sizes) - 1), sizes, seed=seed)
    total = stepmap.share().sum(-1)
    rows = stepmap.pairs.sum(-1) > 0
    torch.testing.assert_close(total[:, :, rows], torch.ones_like(total[:, :, rows]))
    assert torch.isnan(total[:, :, ~rows]).all()


def test_mean_heads_averages_the_mass_and_keeps_the_axis():
    mean = two_heads().mean_heads()
    assert mean.mass.tolist() == [[[[3, 0, 0], [2, 2, 0], [3, 1, 4]]]]
    assert mean.pairs.tolist() == PAIRS
    assert mean.meta == {"model": "m", "heads": "mean"}
    assert two_heads().meta == {"model": "m"}


def test_segment_gives_the_steps_of_that_name():
    stepmap = random_map("qttts", [2, 1, 1, 3, 2])
    assert stepmap.segment("question") == [0]
    assert stepmap.segment("thinking") == [1, 2, 3]
    assert stepmap.segment("summary") == [4]
    assert random_map("qt", [2, 3]).segment("summary") == []


def test_the_table_has_a_row_for_every_layer_head_and_causal_pair():
    table = two_heads().to_dataframe()
    assert len(table) == 2 * 6
    assert set(table["layer"]) == {5}
    row = table.query("head == 1 and query_step == 2 and key_step == 1").iloc[0]
    assert (row["mass"], row["pairs"], row["density"], row["share"]) == (2, 2, 1, 0.25)
    assert (row["query_segment"], row["key_segment"]) == ("summary", "thinking")
    assert (table["key_step"] <= table["query_step"]).all()


def test_the_table_puts_each_number_at_its_own_place():
    stepmap = random_map("qtts", [2, 3, 1, 5], layers=3, heads=2)
    table = stepmap.to_dataframe().set_index(["layer", "head", "query_step", "key_step"])
    for layer in range(3):
        for head in range(2):
            for query in range(4):
                for key in range(query + 1):
                    found = table.loc[(layer, head, query, key)]
                    assert found["mass"] == stepmap.mass[layer, head, query, key].item()
                    assert found["density"] == stepmap.density()[layer, head, query, key].item()
                    assert found["share"] == stepmap.share()[layer, head, query, key].item()


@pytest.mark.parametrize(
    ("layers", "steps", "pairs"), [((5, 6), 3, 3), ((5,), 2, 3), ((5,), 3, 2)], ids=["layers", "steps", "pairs"]
)
def test_sizes_that_do_not_agree_are_refused(layers, steps, pairs):
    with pytest.raises(InputError, match=r"mass has shape \(1, 1, 3, 3\) and pairs .* layers and . steps"):
        unchecked(StepMap.__post_init__)(
            SimpleNamespace(
                mass=torch.ones(1, 1, 3, 3),
                pairs=torch.ones(pairs, pairs, dtype=torch.long),
                steps=make_steps("qts"[:steps], [1] * steps),
                layers=layers,
            )
        )


# --- files -----------------------------------------------------------------------------------------------------------
META = {"model": "é/模型", "answer": [3, 5], "chunk": 7, "seconds": 0.125, "nothing": None, "nested": {"a": [True]}}


def test_a_map_comes_back_from_its_file_bit_for_bit(tmp_path):
    stepmap = random_map("qttss", [2, 3, 1, 5, 1], layers=3, heads=2, **META)
    stepmap.mass[0, 0, 1, 0] = torch.nan
    stepmap.mass[0, 0, 0, 0] = 1e-45  # the smallest float32
    path = tmp_path / "deep" / "é.safetensors"
    stepmap.save(path)
    loaded = StepMap.load(str(path))
    assert loaded.mass.dtype == torch.float32
    assert torch.equal(loaded.mass.view(torch.int32), stepmap.mass.view(torch.int32))
    assert torch.equal(loaded.pairs, stepmap.pairs)
    assert loaded.steps == stepmap.steps
    assert "é→🙂" in loaded.steps[1].text
    assert loaded.layers == stepmap.layers == (0, 1, 2)
    assert loaded.meta == META


def test_a_computed_map_comes_back_with_its_whole_record(qwen2, trace, tmp_path):
    from stepsal import step_saliency

    stepmap = step_saliency(qwen2, trace, objective="answer", answer=(30, 34))
    stepmap.save(tmp_path / "a.safetensors")
    loaded = StepMap.load(tmp_path / "a.safetensors")
    assert loaded.meta == stepmap.meta
    assert loaded.meta["answer"] == [30, 34]
    assert loaded.layers == (0, 1, 2)
    assert torch.equal(loaded.mass, stepmap.mass)


def test_a_view_of_a_larger_map_is_saved_as_it_looks(tmp_path):
    whole = random_map("qtt", [2, 3, 4], layers=3)
    part = StepMap(whole.mass.flip(0)[1:, ::2], whole.pairs, whole.steps, (1, 2), {})
    part.save(tmp_path / "part.safetensors")
    assert torch.equal(StepMap.load(tmp_path / "part.safetensors").mass, part.mass)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.5, 0.9, -8, -1])
def test_a_file_cut_short_is_named_as_such(tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    random_map("qts", [2, 3, 5]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(FileError, match=r"cut\.safetensors is cut short or damaged .* make it again"):
        StepMap.load(path)


@pytest.mark.parametrize("content", [b"\0" * 40, b"\xff" * 40, b"hello, world: no tensors here", bytes(range(1, 256))])
def test_garbage_is_no_step_map(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match="is cut short or damaged"):
        StepMap.load(path)


def test_a_folder_is_no_step_map(tmp_path):
    with pytest.raises(FileError, match="is a folder, and a step map is a file: give one of"):
        StepMap.load(tmp_path)


def test_other_safetensors_are_not_a_step_map(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="its format is None, expected 'stepsal step map 2'"):
        StepMap.load(tmp_path / "model.safetensors")


def change_header(path, **changes):
    """Rewrite entries of the JSON header of a safetensors file; None takes one out."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = {k: v for k, v in (header["__metadata__"] | changes).items() if v is not None}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


def test_a_map_of_another_version_says_so(tmp_path):
    path = tmp_path / "new.safetensors"
    by_hand().save(path)
    change_header(path, format="stepsal step map 3")
    with pytest.raises(
        FileError, match="its format is 'stepsal step map 3', expected 'stepsal step map 2'. Make it again"
    ):
        StepMap.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": None},
        {"steps": "[{"},
        {"steps": '[{"index": 0}]'},
        {"layers": "[5, 6]"},
        {"layers": "5"},
        {"meta": None},
    ],
)
def test_a_header_that_does_not_fit_its_tensors_is_damage(tmp_path, changes):
    path = tmp_path / "odd.safetensors"
    by_hand().save(path)
    change_header(path, **changes)
    with pytest.raises(FileError, match="odd.safetensors is cut short or damaged"):
        StepMap.load(path)


def test_a_map_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileError, match="there is no step map at .*nowhere"):
        StepMap.load(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match=r"cannot write .*map\.safetensors: .* Choose a folder you may write to"):
        by_hand().save(tmp_path / "file" / "map.safetensors")
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    for interruption in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(interruption), atomic_path(path) as part:
            part.write_text("half")
            raise interruption
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_text() == "old"


def test_a_map_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    by_hand().save(path)
    before = path.read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FileError, match="No space left on device"):
        two_heads().save(path)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert path.read_bytes() == before


def test_every_bit_of_a_file_that_flips_is_noticed_or_changes_nothing(tmp_path):
    path = tmp_path / "flipped.safetensors"
    stepmap = random_map("qts", [2, 3, 4], layers=2, heads=2, trace="é", correct=True)
    stepmap.save(path)
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = StepMap.load(path)
        except FileError:
            noticed += 1
            continue
        assert torch.equal(found.mass, stepmap.mass)
        assert torch.equal(found.pairs, stepmap.pairs)
        assert (found.steps, found.layers, found.meta) == (stepmap.steps, stepmap.layers, stepmap.meta)
    assert noticed > 0.98 * len(whole)


def test_a_flipped_bit_among_the_numbers_is_an_error_that_says_so_unless_one_is_in_a_hurry(tmp_path):
    path = tmp_path / "flipped.safetensors"
    by_hand().save(path)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="it does not hold what was written to it: its checksum differs"):
        StepMap.load(path)
    assert StepMap.load(path, verify=False).steps == by_hand().steps


def test_a_file_without_a_checksum_loads(tmp_path):
    path = tmp_path / "old.safetensors"
    by_hand().save(path)
    change_header(path, sha256=None)
    assert torch.equal(StepMap.load(path).mass, by_hand().mass)


def odd_steps(**changes):
    steps = [asdict(step) for step in make_steps("qts", [2, 1, 3])]
    steps[1] |= changes
    return json.dumps(steps)


HAND_MADE = {
    "steps are no list": {"steps": '{"0": 1}'},
    "no step": {"steps": "[]"},
    "a step is a list": {"steps": "[[0, 1, 2]]"},
    "text is a number": {"steps": odd_steps(text=3)},
    "half a surrogate pair": {"steps": odd_steps(text="\ud83d")},
    "a segment that there is none of": {"steps": odd_steps(segment="answer")},
    "segments out of order": {
        "steps": odd_steps(segment="summary").replace('"summary", "start": 3', '"thinking", "start": 3')
    },
    "another index": {"steps": odd_steps(index=2)},
    "a place that is no whole number": {"steps": odd_steps(start=2.0)},
    "a place that is true": {"steps": odd_steps(start=True)},
    "a gap": {"steps": odd_steps(stop=2, start=2)},
    "an overlap": {"steps": odd_steps(start=1)},
    "a huge place": {"steps": odd_steps(stop=2**70)},
    "one more field": {"steps": odd_steps(more=1)},
    "deep steps": {"steps": "[" * 100_000},
    "deep meta": {"meta": '{"a":' * 100_000},
    "layers are no list": {"layers": "5"},
    "a layer that is text": {"layers": '["5"]'},
    "a layer that is true": {"layers": "[true]"},
    "a layer below none": {"layers": "[-1]"},
    "a layer beyond the model": {"meta": '{"model_layers": 5}'},
    "meta is a list": {"meta": "[1]"},
    "correct is text": {"meta": '{"correct": "yes"}'},
    "correct is a number": {"meta": '{"correct": 1}'},
    "the trace is a list": {"meta": '{"trace": ["a"]}'},
    "the rule is a number": {"meta": '{"rule": 7}'},
    "other tokens": {"meta": '{"tokens": 7}'},
    "tokens are missing": {"meta": '{"tokens": null}'},
    "what it was made of is text": {"meta": '{"made_of": "x"}'},
}


@pytest.mark.parametrize("changes", HAND_MADE.values(), ids=HAND_MADE.keys())
def test_what_no_map_can_hold_is_refused_with_the_reason(tmp_path, changes):
    path = tmp_path / "odd.safetensors"
    by_hand().save(path)
    change_header(path, sha256=None, **changes)
    with pytest.raises(FileError, match=r"odd.safetensors is cut short or damaged \(.+\)\. Copy it anew"):
        StepMap.load(path)


TENSORS = {
    "whole numbers for mass": (torch.int64, torch.int64, 1),
    "truth for mass": (torch.bool, torch.int64, 1),
    "complex mass": (torch.complex64, torch.int64, 1),
    "fractions for pairs": (torch.float32, torch.float32, 1),
    "truth for pairs": (torch.float32, torch.bool, 1),
    "pairs below zero": (torch.float32, torch.int64, -1),
    "more pairs than there are": (torch.float32, torch.int64, 100),
}


@pytest.mark.parametrize(("mass", "pairs", "factor"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_no_map_can_hold_are_refused(tmp_path, mass, pairs, factor):
    path = tmp_path / "odd.safetensors"
    good = by_hand()
    unchecked(write_map)(path, good.mass.to(mass), (factor * good.pairs).to(pairs), good.steps, good.layers, good.meta)
    with pytest.raises(FileError, match=r"odd.safetensors is cut short or damaged \(.+\)"):
        StepMap.load(path)


def test_an_infinity_is_refused(tmp_path):
    stepmap = by_hand()
    stepmap.mass[0, 0, 1, 0] = torch.inf
    stepmap.save(tmp_path / "a.safetensors")
    with pytest.raises(FileError, match="mass holds an infinity"):
        StepMap.load(tmp_path / "a.safetensors")


def test_what_a_header_cannot_hold_is_said_when_it_is_saved(tmp_path):
    for meta in ({"a": {1, 2}}, {"trace": "\ud83d"}):
        with pytest.raises(InputError, match="cannot be written"):
            by_hand(**meta).save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_map_has_the_permissions_that_the_users_umask_gives(tmp_path):
    before = os.umask(0o022)
    try:
        by_hand().save(tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    by_hand().save(path)

    def forbidden(*given, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(FileError, match=r"cannot read .*a\.safetensors: Permission denied"):
        StepMap.load(path)


# --- compact files, and parts of them ----------------------------------------------------------------------------------
def save_as_stepsal_0_1_did(stepmap, path):
    """The file that stepsal 0.1 and the first versions of 0.2 wrote: whole squares; with the checksum of the latter."""
    header = {
        "format": "stepsal step map 1",
        "steps": json.dumps([asdict(step) for step in stepmap.steps], ensure_ascii=False),
        "layers": json.dumps(stepmap.layers),
        "meta": json.dumps(stepmap.meta, ensure_ascii=False),
    }
    digest = hashlib.sha256()
    parts = [text.encode() for text in header.values()]
    for name, tensor in (("mass", stepmap.mass), ("pairs", stepmap.pairs)):
        parts += [f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), tensor.numpy().tobytes()]
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part)
    save_file({"mass": stepmap.mass, "pairs": stepmap.pairs}, path, header | {"sha256": digest.hexdigest()})


def test_a_file_with_whole_squares_loads_and_its_checksum_counts(tmp_path):
    path, stepmap = tmp_path / "old.safetensors", random_map("qttss", [2, 3, 1, 5, 1], layers=3, heads=2, **META)
    save_as_stepsal_0_1_did(stepmap, path)
    found = StepMap.load(path)
    assert torch.equal(found.mass, stepmap.mass)
    assert torch.equal(found.pairs, stepmap.pairs)
    assert (found.steps, found.layers, found.meta) == (stepmap.steps, stepmap.layers, stepmap.meta)
    assert torch.equal(StepMap.load(path, layers=[2], heads=[1]).mass, stepmap.mass[2:, 1:])
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="its checksum differs"):
        StepMap.load(path)


def test_a_file_holds_the_causal_half_alone(tmp_path):
    n, (layers, heads) = 60, (3, 2)
    stepmap = random_map("q" + "t" * (n - 1), [1] * n, layers=layers, heads=heads)
    stepmap.save(tmp_path / "new.safetensors")
    save_as_stepsal_0_1_did(stepmap, tmp_path / "old.safetensors")
    sizes = {name: (tmp_path / f"{name}.safetensors").stat().st_size for name in ("old", "new")}
    saved = n * (n - 1) // 2 * (layers * heads * 4 + 8)  # what is above the diagonal, of mass and of pairs
    assert sizes["old"] - sizes["new"] == pytest.approx(saved, abs=64)  # the header differs by a few bytes


def test_a_map_in_which_a_step_reads_from_a_later_one_is_refused(tmp_path):
    stepmap = random_map("qts", [2, 3, 4])
    for part in (stepmap.mass[1, 0], stepmap.pairs):
        before = part[1, 2].item()
        part[1, 2] = 1
        with pytest.raises(InputError, match="is not zero above the diagonal: step 1 reads from a later step"):
            stepmap.save(tmp_path / "a.safetensors")
        part[1, 2] = before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("layers", "heads"), [([6], None), (None, [1, 0]), ([7, 5], [2]), ([5, 6, 7], [0, 1, 2])])
def test_a_part_of_a_map_is_what_the_whole_map_holds_there(tmp_path, layers, heads):
    stepmap = replace(random_map("qttss", [2, 3, 1, 5, 1], layers=3, heads=3, trace="a"), layers=(5, 6, 7))
    stepmap.save(tmp_path / "a.safetensors")
    part = StepMap.load(tmp_path / "a.safetensors", layers=layers, heads=heads)
    places = [layer - 5 for layer in layers or (5, 6, 7)]
    assert torch.equal(part.mass, stepmap.mass[places][:, heads or [0, 1, 2]])
    assert torch.equal(part.pairs, stepmap.pairs)
    assert (part.steps, part.layers) == (stepmap.steps, tuple(layers or (5, 6, 7)))
    said = {"trace": "a", "checksum": "not compared: only a part of the file was read"}
    assert part.meta == said | ({"heads": ", ".join(map(str, heads))} if heads else {})
    part.save(tmp_path / "part.safetensors")
    assert torch.equal(StepMap.load(tmp_path / "part.safetensors").mass, part.mass)


def test_reading_a_part_reads_no_other(tmp_path):
    path = tmp_path / "a.safetensors"
    stepmap = random_map("qts", [2, 3, 4], layers=2)
    stepmap.save(path)
    content = bytearray(path.read_bytes())
    last = struct.pack("<f", stepmap.mass[1, 2, 2, 2].item())
    content[content.rindex(last) + 3] ^= 0x40  # far off, in the last layer
    path.write_bytes(content)
    assert torch.equal(StepMap.load(path, layers=[0]).mass, stepmap.mass[:1])
    assert not torch.equal(StepMap.load(path, layers=[1]).mass, stepmap.mass[1:])
    with pytest.raises(FileError, match="its checksum differs"):
        StepMap.load(path)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"layers": [3]}, "a.safetensors does not hold layer 3: it holds 0, 1"),
        ({"heads": [0, -1]}, "does not hold head -1: it holds 0, 1, 2"),
        ({"heads": []}, r"heads=\[\] must name one head at least"),
        ({"layers": [1, 1]}, "none twice"),
        ({"layers": 1}, r"Of one layer make a list, \[0\]"),
    ],
)
def test_a_part_that_is_not_there_is_named(tmp_path, chosen, says):
    random_map("qts", [2, 3, 4]).save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=says):
        unchecked_load(tmp_path / "a.safetensors", **chosen)


def unchecked_load(path, **chosen):
    """`StepMap.load` without the test run's type checks; its own checks stay."""
    from stepsal.checks import checked
    from stepsal.saliency import stepmap

    function = unchecked(StepMap.load.__func__)
    return checked(layers=stepmap._layers, heads=stepmap._heads)(function)(StepMap, path, **chosen)


def test_two_bytes_a_number_take_half_the_room_and_say_what_they_cost(tmp_path):
    stepmap = random_map("q" + "t" * 39, [1] * 40, layers=3, heads=2, trace="a")
    stepmap.mass[0, 0, 2, 1] = torch.nan
    stepmap.save(tmp_path / "exact.safetensors")
    stepmap.save(tmp_path / "small.safetensors", precision="bfloat16")
    found = StepMap.load(tmp_path / "small.safetensors")
    assert found.mass.dtype == torch.float32
    known = (stepmap.mass != 0) & stepmap.mass.isfinite()
    errors = ((found.mass.double() - stepmap.mass) / stepmap.mass)[known].abs()
    assert found.meta == {"trace": "a", "precision": "bfloat16", "precision_error": float(errors.max())}
    assert 0 < found.meta["precision_error"] <= 2**-8
    assert torch.equal(found.mass == 0, stepmap.mass == 0)
    assert found.mass[0, 0, 2, 1].isnan()
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("exact", "small")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * 3 * 2 * 40 * 41 / 2, abs=100)


def test_what_bfloat16_cannot_hold_is_refused(tmp_path):
    stepmap = random_map("qts", [2, 3, 4])
    stepmap.mass[0, 0, 1, 0] = torch.finfo(torch.float32).max
    with pytest.raises(InputError, match="too large for bfloat16"):
        stepmap.save(tmp_path / "a.safetensors", precision="bfloat16")
    with pytest.raises(InputError, match="precision='int8' is unknown: expected 'bfloat16'"):
        unchecked(in_precision)(random_map("qts", [2, 3, 4]), "int8")
