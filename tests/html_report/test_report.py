"""The report: what is in the file."""

import base64
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_map, random_map
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pages import EVIL, evil_map

from stepsal import FileError, InputError
from stepsal.files import locked
from stepsal.html_report.numbers import quantise
from stepsal.html_report.report import report

SEGMENTS, SIZES = "qtttts", [5, 3, 2, 4, 3, 6]


def embedded(path) -> dict:
    """The index of a page, and under `maps` what it has of each trace."""
    page = path.read_text("utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    traces = re.findall(r'<script type="application/json" class="trace">(.*?)</script>', page)
    return json.loads(found) | {"maps": [json.loads(trace) for trace in traces]}


def decoded(trace: dict) -> np.ndarray:
    """The masses as the page gets them: `layer head pair`."""
    codes = np.frombuffer(base64.b64decode(trace["mass"]), "<u2")
    low, step = trace["scale"]
    mass = np.where(codes == 0, 0, np.exp(low + (codes.astype(float) - 1) * step))
    return np.where(codes == 65535, np.nan, mass).reshape(len(trace["layers"]), len(trace["heads"]), -1)


# --- the file --------------------------------------------------------------------------------------------------------
def test_the_page_needs_nothing_but_itself(tmp_path):
    page = report(tmp_path / "a.html", [random_map(SEGMENTS, SIZES)]).read_text("utf-8")
    assert re.findall(r"https?://[^\"'\s]*", page) == ["http://www.w3.org/2000/svg"]
    assert not re.findall(r"\bsrc=|@import|url\((?!#)|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", page)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", page)
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"]
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    assert "{{" not in page


def test_150_steps_of_28_layers_fit_in_five_megabytes(tmp_path):
    sizes = [2] * 150
    stepmap = random_map("q" + "t" * 129 + "s" * 20, sizes, layers=28, heads=2)
    stepmap = replace(stepmap, steps=tuple(replace(step, text="推理 <b>" * 100) for step in stepmap.steps))
    small = report(tmp_path / "small.html", [stepmap]).stat().st_size
    large = report(tmp_path / "large.html", [stepmap], heads=[1]).stat().st_size
    assert small < 2e6
    assert 0.8e6 < large - small < 0.9e6


def test_text_is_data_and_never_markup(tmp_path):
    path = report(tmp_path / "a.html", [evil_map()], title="</script><b>{{data}}")
    page = path.read_text("utf-8")
    assert page.count("</script>") == 3
    assert "<img" not in page
    data = embedded(path)
    assert data["title"] == "</script><b>{{data}}"
    assert [text for _, text in data["maps"][0]["steps"]] == list(EVIL)


def test_any_text_can_be_written(tmp_path):
    texts = ["\ud800 alone", "\u2028\u2029\0\x1b", "", "a\r\nb"]
    stepmap = random_map("qttt", [2] * 4)
    stepmap = replace(stepmap, steps=tuple(replace(s, text=text) for s, text in zip(stepmap.steps, texts, strict=True)))
    (trace,) = embedded(report(tmp_path / "a.html", [stepmap]))["maps"]
    assert [text for _, text in trace["steps"]] == texts


def test_masses_of_the_mean_and_of_the_heads_asked_for_are_off_by_a_thousandth_at_most(tmp_path):
    stepmap = random_map(SEGMENTS, SIZES, layers=3, heads=5)
    mass = stepmap.mass * 10 ** torch.linspace(-20, 6, 5)[:, None, None]
    mass[2, :, 4, 1] = 0
    (trace,) = embedded(report(tmp_path / "a.html", [replace(stepmap, mass=mass)], heads=[4, 0]))["maps"]
    assert trace["heads"] == ["mean of 5", "4", "0"]
    row, column = np.tril_indices(6)
    exact = torch.cat([mass.double().mean(1, keepdim=True), mass[:, [4, 0]].double()], 1)[:, :, row, column].numpy()
    np.testing.assert_allclose(decoded(trace), exact, rtol=1e-3)
    assert (decoded(trace)[2][:, (row == 4) & (column == 1)] == 0).all()
    assert np.frombuffer(base64.b64decode(trace["pairs"]), "<u4").tolist() == stepmap.pairs[row, column].tolist()


def test_heads_are_embedded_only_on_request(tmp_path):
    (trace,) = embedded(report(tmp_path / "a.html", [random_map(SEGMENTS, SIZES)]))["maps"]
    assert trace["heads"] == ["mean of 3"]
    assert decoded(trace).shape == (2, 1, 21)
    (trace,) = embedded(report(tmp_path / "a.html", [random_map(SEGMENTS, SIZES).mean_heads()]))["maps"]
    assert trace["heads"] == ["mean of heads"]


@given(arrays.arrays(np.float64, 7, elements=st.floats(0, 3e38) | st.sampled_from([0, 1e-45, 3e38, np.nan, np.inf])))
def test_quantising_keeps_zero_and_missing_and_is_off_by_a_thousandth_at_most(mass):
    codes, low, step = quantise(mass)
    largest = mass[np.isfinite(mass)].max(initial=0)
    assert ((codes == 65535) == ~np.isfinite(mass)).all()
    for value, code in zip(mass, codes, strict=True):
        if code not in (0, 65535):
            assert math.isclose(value, math.exp(low + (int(code) - 1) * step), rel_tol=1e-3)
        elif code == 0:
            assert value <= largest * 1e-50


def test_numbers_that_a_trace_does_not_have_are_missing_and_never_zero(tmp_path):
    stepmap = make_map("qts", [3, 2, 1], torch.ones(4, 2, 3, 3))  # the summary is the last token: no target
    stepmap.mass[0, 1, 1, 0] = torch.nan
    (trace,) = embedded(report(tmp_path / "a.html", [stepmap], heads=[0]))["maps"]
    assert np.isnan(decoded(trace)[0]).sum(1).tolist() == [1, 0]
    assert [profile["values"] for profile in trace["profiles"]] == [[None] * 4, [None] * 4]
    assert {verdict["found"] for verdict in trace["verdicts"]} == {None}
    assert all(verdict["evidence"] for verdict in trace["verdicts"])


def test_bands_that_a_map_does_not_hold_whole_are_not_offered(tmp_path):
    stepmap = make_map("qt", [3, 3], torch.rand(3, 3, 2, 2), layers=(1, 6, 7), model_layers=8)
    (trace,) = embedded(report(tmp_path / "a.html", [stepmap]))["maps"]
    assert (trace["layers"], trace["bands"]) == ([1, 6, 7], {"deep": [6, 7]})


def test_the_same_maps_give_the_same_file(tmp_path):
    one, two = (report(tmp_path / name, [random_map(SEGMENTS, SIZES)]).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_what_cannot_be_shown_is_refused_and_leaves_no_file(tmp_path):
    path, stepmap = tmp_path / "a.html", random_map(SEGMENTS, SIZES, trace="t7", rule="signed")
    signed = replace(stepmap, mass=-stepmap.mass)
    with pytest.raises(InputError, match="no step map to report on: give one"):
        report(path, [])
    with pytest.raises(InputError, match="head 3 is not in the map of 't7', which holds heads 0 to 2. Name some"):
        report(path, [stepmap], heads=[0, 3])
    with pytest.raises(InputError, match="head -1 is not"):
        report(path, [stepmap], heads=[-1])
    with pytest.raises(InputError, match="names a head twice"):
        report(path, [stepmap], heads=[1, 1])
    with pytest.raises(
        InputError, match=r"'t7 \(2\)' holds negative influence \(rule 'signed'\).*Make it with rule='abs'"
    ):
        report(path, [stepmap, signed])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot write"):
        report(tmp_path / "file" / "a.html", [stepmap])


def test_a_report_goes_through_a_link_and_a_second_one_at_the_same_time_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "page.html").write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to("real/page.html")
    report(link, [random_map(SEGMENTS, SIZES)])
    assert link.is_symlink()
    assert (tmp_path / "real" / "page.html").read_text().startswith("<!")
    with locked(tmp_path / "real" / "page.html", "at work"), pytest.raises(FileError, match="another run is writing"):
        report(link, [random_map(SEGMENTS, SIZES)])
