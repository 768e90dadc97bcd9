"""Fixtures: tiny seeded models made from configs, and the bundled reasoner with some of its traces. No network.

Under TransformerLens 3.9 (`make test-tl3`) the models are `HookedTransformer`s.
"""

import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hooked import HOST
from hypothesis import settings

import stepsal
from stepsal.models.host import BUNDLED

settings.register_profile("stepsal", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("stepsal")
torch.set_num_threads(min(2, torch.get_num_threads()))  # OMP_NUM_THREADS=1 is kept


def save_tiny(family: str, folder: Path, **changes: object) -> Path:
    """A seeded model with grouped-query attention, as a Hugging Face directory with the reasoner's tokenizer.

    No two sizes are alike, and the weights are large, so that attention is far from uniform.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    tokenizer = stepsal.load_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    model_class(config_class(**sizes | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(name: str | Path) -> object:
    """A model of the kind that the installed TransformerLens is tested for."""
    return stepsal.load_model(name, host=HOST)


# The families hardly differ where these tests look: the second is for the slow run, and for `test_conformance`.
@pytest.fixture(scope="session", params=["qwen2", pytest.param("llama", marks=pytest.mark.slow)])
def tiny(request, tmp_path_factory):
    """A tiny model of each family."""
    return load(save_tiny(request.param, tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory):
    return load(save_tiny("qwen2", tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def alone(monkeypatch):
    """Every trace has passes of its own, however short it is."""
    monkeypatch.setattr("stepsal.saliency.recipe.TOKENS_TOGETHER", 1)


@pytest.fixture
def own_metric():
    """The name of a metric of a user's own, which is known until the test ends."""
    from stepsal.diagnosis.metrics import METRICS

    @stepsal.metric(label="largest share", reference=0.25)
    def largest_share(stepmap):
        return stepmap.share()[:, :, -2].amax(-1)

    yield "largest_share"
    METRICS.pop("largest_share")


@pytest.fixture(scope="session")
def reasoner():
    """The bundled trained model."""
    return load(BUNDLED)


@pytest.fixture(scope="session")
def reasoner_traces(reasoner):
    """Real traces: the bundled model's own answers to test problems."""
    from stepsal.generation.task import answer_problems

    return answer_problems(reasoner, 12, length=3, progress=False)


@pytest.fixture(scope="session")
def trace():
    """A short trace with every segment: 5 steps."""
    return stepsal.Trace.from_text(
        stepsal.load_tokenizer(),
        [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}],
        "First k = 37.\n\nThen m = k + 25 = 37 + 25 = 62.\n</think>\n\nFrom the steps.\n\nSo \\boxed{62}",
        id="short",
    )


# --- a browser for the tests of the report's page; where there is none they are skipped ------------------------------
@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a report; at the end of the test: nothing on the console, no request but for its own files, no dialog."""
    from stepsal import report

    pages, seen = [], []

    def open_report(stepmaps, width=1280, height=900, address="", theme="light", touch=False, **options):
        path = report(tmp_path / "report.html", stepmaps, **options)
        allowed = (path.as_uri(), path.with_name("report_files").as_uri() + "/", "blob:")
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=theme, has_touch=touch, accept_downloads=True
        )
        page.set_default_timeout(120_000)  # a machine may be busy
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(allowed) else seen.append(request.url))
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri() + address)
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.evaluate("new Promise((done) => setTimeout(done, 50))")
        page.close()
    assert seen == []
