"""Every family of the support table, through every check; and that the table says so."""

import warnings

import pytest
import torch
from conformance import CHECKS, PAGE, START, STOP, make_subject, patterns, refusal, render
from families import FAMILIES, REFUSED
from hooked import CONVERTED, TL3

import stepsal
from stepsal import UnsupportedModelError
from stepsal.interventions import OddsEqualBridge
from stepsal.models.bridge import BridgeHost
from stepsal.models.support import check_supported

# One family of each kind is checked in `make test`; the others are marked slow, and CI runs them, too.
OFTEN = (
    "Qwen2",
    "Llama",
    "Qwen3-MoE",
    "DeepSeek-V3",
    "GPT-OSS",
    "Gemma 3",
    "Qwen3.5",
    "LFM2",
    "BLOOM",
)


def params():
    for family in FAMILIES:
        if not TL3 or family.name in CONVERTED:
            yield pytest.param(family, id=family.name, marks=[] if family.name in OFTEN else [pytest.mark.slow])


def test_the_families_that_are_checked_often_are_families():
    assert set(OFTEN) <= {family.name for family in FAMILIES}


@pytest.fixture(scope="module", params=params())
def family(request):
    return request.param


@pytest.fixture(scope="module")
def subject(family, tmp_path_factory):
    with warnings.catch_warnings():  # Transformers warns of the tiny configurations
        warnings.simplefilter("ignore")
        return make_subject(family, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "check", [each for checks in CHECKS.values() for each in checks], ids=lambda each: each.__name__
)
def test_family(subject, check):
    check(subject)


@pytest.fixture(scope="module")
def reasons(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {family.name: refusal(family, tmp_path_factory.mktemp("model")) for family in REFUSED}


@pytest.mark.bridge
def test_models_that_cannot_be_exact_are_refused_with_a_reason(reasons):
    assert all(reasons.values()), reasons


@pytest.mark.bridge
def test_the_table_in_the_documentation_is_what_these_tests_show(reasons):
    held = {family.name: dict.fromkeys(CHECKS, True) for family in FAMILIES}  # or the tests above fail
    table = PAGE.read_text(encoding="utf-8").split(START)[1].split(STOP)[0].strip()
    assert table == render(held, reasons), "run `make support`"


def test_rows_of_gpt_oss_sum_to_less_than_one_and_stay_so_under_the_bridge(tmp_path):
    """The sink's mass is no key's; it belongs to the rest, which the bridge leaves alone."""
    gpt_oss = next(family for family in FAMILIES if family.name == "GPT-OSS")
    subject = make_subject(gpt_oss, tmp_path)
    tokens = subject.traces[0].tokens[None]
    before, after = (patterns(subject.model, tokens, parts) for parts in ((), OddsEqualBridge(0, tau_max=0.9)))
    old, new = before["pattern", 0], after["pattern", 0]
    assert (old.sum(-1) < 1).all()
    assert (old.sum(-1) < 0.99).float().mean() > 0.5  # much more than rounding
    assert not torch.equal(new, old)
    torch.testing.assert_close(1 - new.sum(-1), 1 - old.sum(-1), rtol=0, atol=2e-7)


@pytest.mark.bridge
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_loses_its_cache_in_silence_is_refused(dtype, monkeypatch):
    """TransformerLens 4.3 does beside transformers 5.24, if nothing is done: each token of a cached pass sees itself alone."""
    forward = BridgeHost.forward
    monkeypatch.setattr(BridgeHost, "forward", lambda host, tokens, hooks, cache=None: forward(host, tokens, hooks))
    with pytest.raises(UnsupportedModelError, match="does not read its cache"):
        check_supported(stepsal.load_model(dtype=dtype))
