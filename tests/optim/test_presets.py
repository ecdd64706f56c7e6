"""The files under conf/optim and conf/schedule build the configs that they name."""

from pathlib import Path

import pytest
import yaml

from lmstack.optim import optimizers, schedules

CONF = Path(__file__).parents[2] / "conf"
KINDS = {
    "optim": {"adamw": optimizers.AdamWConfig, "muon": optimizers.MuonConfig},
    "schedule": {
        "constant": schedules.ConstantSchedule,
        "linear": schedules.LinearSchedule,
        "cosine": schedules.CosineSchedule,
        "wsd": schedules.WSDSchedule,
        "inverse_sqrt": schedules.InverseSqrtSchedule,
        "step": schedules.StepSchedule,
    },
}
NODES = {"optim": "model.optimizer", "schedule": "model.schedule"}


@pytest.mark.parametrize("group", KINDS)
def test_every_kind_has_its_file(group):
    assert {file.stem for file in (CONF / group).glob("*.yaml")} == set(KINDS[group])


@pytest.mark.parametrize(("group", "kind"), [(group, kind) for group in KINDS for kind in KINDS[group]])
def test_a_preset_builds_its_config_at_its_node(group, kind):
    text = (CONF / group / f"{kind}.yaml").read_text()
    assert text.splitlines()[0] == f"# @package {NODES[group]}"
    values = yaml.safe_load(text)
    assert values["kind"] == kind
    lists_as_tuples = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    assert KINDS[group][kind](**lists_as_tuples).kind == kind
