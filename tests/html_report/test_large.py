"""A report of more maps than one page holds: files beside the page, and a page that loads the trace that is looked at."""

import gc
import re
import weakref

import pytest
from helpers import random_map
from pages import EVIL, LEFT, evil_map, hover, shown_trace, values, wait_until

import stepsal.html_report.numbers
from stepsal import InputError, report
from stepsal.saliency.stepmapfile import StepMapFile

MAPS = 300


@pytest.fixture
def one_page_holds_little(monkeypatch):
    monkeypatch.setattr("stepsal.html_report.report.PAGE_LIMIT", 100)


def small_maps(count: int = MAPS):
    return [
        random_map(
            "qtts"[: 3 + index % 2], [2, 3, 2, 2][: 3 + index % 2], seed=index, trace=f"t{index}", correct=index % 3 > 0
        )
        for index in range(count)
    ]


def test_up_to_the_limit_there_is_one_file_and_beyond_it_one_for_each_trace(tmp_path, monkeypatch):
    maps = small_maps(6)
    path = report(tmp_path / "a.html", maps)
    assert [each.name for each in tmp_path.iterdir()] == ["a.html"]
    whole = path.stat().st_size
    monkeypatch.setattr("stepsal.html_report.report.PAGE_LIMIT", 100)
    assert report(path, maps) == path
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.html", "a_files"]
    assert len(list((tmp_path / "a_files").iterdir())) == 6
    assert path.stat().st_size < whole
    monkeypatch.setattr("stepsal.html_report.report.PAGE_LIMIT", 10**9)
    report(path, maps)
    assert [each.name for each in tmp_path.iterdir()] == ["a.html"]  # the files of the earlier report are gone


def test_the_size_is_told_before_anything_is_read(tmp_path):
    stepmap = random_map("q" + "t" * 60, [2] * 61, layers=9, heads=3)
    for heads in ([], [0, 2]):
        bare = report(tmp_path / "bare.html", [random_map("q", [2], layers=9, heads=3)], heads=heads).stat().st_size
        size = report(tmp_path / "a.html", [stepmap], heads=heads).stat().st_size - bare
        assert stepsal.html_report.numbers.bytes_of(stepmap, len(heads), False) == pytest.approx(size, rel=0.1)


def test_a_second_report_leaves_no_file_of_the_first_and_none_that_is_not_its_own(tmp_path, one_page_holds_little):
    path, files = tmp_path / "a.html", tmp_path / "a_files"
    report(path, small_maps(5))
    (files / "notes.txt").write_text("mine")
    first = {each.name for each in files.iterdir()}
    report(path, small_maps(3))
    second = {each.name for each in files.iterdir()}
    assert second < first
    assert len(second) == 4
    named = set(re.findall(r"a_files/([\w.-]+\.js)", path.read_text("utf-8")))
    assert named == second - {"notes.txt"}


def test_a_report_that_fails_leaves_the_earlier_one_whole(tmp_path, one_page_holds_little):
    path, files = tmp_path / "a.html", tmp_path / "a_files"
    maps = small_maps(4)
    report(path, maps)
    before = {each.relative_to(tmp_path): each.read_bytes() for each in (path, *files.iterdir())}
    signed = random_map("qt", [2, 2], trace="signed", rule="signed")
    signed.mass.neg_()
    with pytest.raises(InputError, match="negative influence"):
        report(path, [*small_maps(9)[4:], *maps[:2], signed])
    assert {each.relative_to(tmp_path): each.read_bytes() for each in (path, *files.iterdir())} == before


def test_one_map_is_in_memory_at_a_time(tmp_path, monkeypatch, one_page_holds_little):
    (tmp_path / "maps").mkdir()
    files = []
    for stepmap in small_maps(12):
        stepmap.save(tmp_path / "maps" / f"{stepmap.meta['trace']}.safetensors")
        files.append(StepMapFile.open(tmp_path / "maps" / f"{stepmap.meta['trace']}.safetensors"))
    alive, most = [], []

    def loaded(file):
        gc.collect()
        most.append(sum(each() is not None for each in alive))
        stepmap = file.load()
        alive.append(weakref.ref(stepmap.mass))
        return stepmap

    monkeypatch.setattr("stepsal.html_report.numbers.loaded", loaded)
    del stepmap
    report(tmp_path / "a.html", files)
    assert len(most) == 12
    assert max(most) <= 1


def test_hundreds_of_traces_are_listed_at_once_and_loaded_one_by_one_from_disk(visit, one_page_holds_little):
    maps = small_maps()
    page = visit(maps)
    assert page.evaluate("loaded.size") == 1
    assert page.locator("#list label").count() == MAPS
    names = [text.split("\n")[1] for text in page.locator("#list label").all_inner_texts()]
    assert names == [f"t{index}" for index in range(MAPS)]
    assert page.locator("#accuracy").inner_text() == "66.7 % right"
    assert page.locator("#verdict-counts").inner_text().split("\n")[0].split("\t")[1:] == ["right (200)", "wrong (100)"]
    assert page.locator("#run .interval").count() == 4
    for index in (17, 250):
        page.locator("#list label").nth(index).click()
        wait_until(page, f"left.trace.name === 't{index}'")
        hover(page, 2, 1)
        expected = float(maps[index].mean_heads().share().mean((0, 1))[2, 1])
        assert values(page)[0] == pytest.approx(expected, rel=6e-3)
    assert page.evaluate("loaded.size") == 3
    page.locator("#find-trace").fill("t29")
    assert page.locator("#list label").count() == 11
    assert "11 of 300 listed" in page.locator("#listed").inner_text()
    page.get_by_text("wrong 100").click()
    assert page.locator("#list label").count() == 3  # t291, t294, t297
    page.locator("#find-trace").fill("")
    page.select_option("#sort", "steps")
    steps = [int(re.search(r"(\d+) steps", text)[1]) for text in page.locator("#list label").all_inner_texts()]
    assert steps == sorted(steps, reverse=True)
    page.select_option("#beside", "trace")
    wait_until(page, "right.trace !== null")
    page.go_back()
    wait_until(page, "right.trace === null")
    assert shown_trace(page) == "t250"
    page.go_back()
    wait_until(page, "left.trace.name === 't17'")


def test_traces_that_were_looked_at_do_not_pile_up_in_memory(visit, one_page_holds_little):
    page = visit(small_maps(40))
    for index in range(1, 40):
        page.locator("#list label").nth(index).click()
        wait_until(page, f"left.trace.name === 't{index}'")
    assert page.evaluate("loaded.size <= KEPT && document.querySelectorAll('script[src]').length === 0")


def test_text_is_never_markup_in_files_either(visit, one_page_holds_little, tmp_path):
    page = visit([evil_map(), *small_maps(20)], title="<img src=x>", address=f"#trace={EVIL[0]}")
    wait_until(page, "left.trace !== null")
    assert page.locator("li.step .text").all_inner_texts() == list(EVIL)
    assert page.locator("img").count() == 0
    files = list((tmp_path / "report_files").iterdir())
    assert len(files) == 21
    assert not any(b"<" in each.read_bytes() for each in files)


def test_no_script_runs_but_the_page_s_own_and_the_files_it_loads(browser, tmp_path, one_page_holds_little):
    path = report(tmp_path / "a.html", small_maps(20))
    (tmp_path / "a_files" / "evil.js").write_text("ran=1")
    hostile = "<body><img src=x onerror='ran=1'><script>ran=1</script><script src='a_files/evil.js'></script>"
    path.write_text(path.read_text("utf-8").replace("<body>", hostile), "utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    wait_until(page, "left.trace !== null")
    assert page.evaluate("typeof ran") == "undefined"
    page.close()


def test_a_page_of_any_name_finds_its_files(browser, tmp_path, one_page_holds_little):
    path = report(tmp_path / "50 % of é #1?.html", small_maps(20))
    page = browser.new_page()
    page.goto(path.as_uri())
    wait_until(page, "left.trace !== null")
    assert shown_trace(page) == "t0"
    page.close()


def test_a_file_that_is_gone_is_named(browser, tmp_path, one_page_holds_little):
    path = report(tmp_path / "a.html", small_maps(20))
    for each in (tmp_path / "a_files").iterdir():
        each.unlink()
    page = browser.new_page()
    page.goto(path.as_uri())
    wait_until(page, "document.getElementById('notice').textContent !== ''")
    assert "keep that folder beside this page" in page.locator("#notice").inner_text()
    assert page.locator(f"{LEFT}").count() == 1
    page.close()
