"""The interventions that the harness's arguments and files of settings name."""

import pytest

from stepsal import FileError, InputError, OddsEqualBridge, StepMomentum
from stepsal.harness.arguments import interventions_of, setting_of


def test_arguments_give_what_the_classes_give():
    chosen = interventions_of(
        {"smi": True, "oeb": 0.3, "oeb_layers": "shallow", "smi_layers": "5+7", "smi_heads": 1, "oeb_scope": "step"}
    )
    assert chosen == (
        StepMomentum(layers=(5, 7), heads=(1,)),
        OddsEqualBridge(layers="shallow", tau_max=0.3, scope="step"),
    )
    assert interventions_of({"smi": 1, "smi_window": "step"}) == (StepMomentum(alpha=1.0, window=None),)
    assert interventions_of({"random-bridge": 0.2})[0].name == "random-bridge"
    assert interventions_of({}) == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"oebb": 0.1}, "no argument oebb=0.1. Did you mean 'oeb'?"),
        ({"pretraned": "x"}, "Did you mean 'pretrained'?"),
        ({"oeb_layers": "shallow"}, "option of 'oeb', which is not chosen: give oeb=true"),
        ({"oeb": True, "oeb_taumax": 1}, "did you mean 'tau_max'?"),
        ({"oeb": "strong"}, "give oeb=true, or a number for its tau_max"),
        ({"oeb": False}, "leave it out"),
        ({"oeb": True, "oeb_layers": "top"}, "top"),
    ],
)
def test_what_no_intervention_has_is_refused_with_the_fix(given, message):
    with pytest.raises(InputError) as error:
        interventions_of(given, known=["pretrained"])
    assert message in str(error.value)


def test_a_file_of_settings_is_read_by_name(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(
        "[baseline]\ninterventions = []\n"
        '[both]\ninterventions = [{name = "oeb", tau_max = 0.2}, {name = "smi", layers = [6, 7], heads = [0]}]\n'
        "[wrong]\nlayers = 3\n"
    )
    assert setting_of(path, "baseline") == ()
    assert setting_of(path, "both") == (OddsEqualBridge(tau_max=0.2), StepMomentum(layers=(6, 7), heads=(0,)))
    with pytest.raises(InputError, match="setting='oeb' is none of .*: it has 'baseline', 'both', 'wrong'"):
        setting_of(path, "oeb")
    with pytest.raises(InputError, match=r"\[wrong\] of .* must hold interventions"):
        setting_of(path, "wrong")
    with pytest.raises(FileError, match="cannot read settings"):
        setting_of(tmp_path / "none.toml", "both")
    path.write_text("[both")
    with pytest.raises(FileError, match="is no TOML"):
        setting_of(path, "both")
