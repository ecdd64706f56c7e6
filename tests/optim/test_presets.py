"""The files under conf/optim and conf/schedule build the configs that they name."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lmstack.optim import optimizers, schedules

CONF = Path(__file__).parents[2] / "conf"
PRESETS = {
    "optim": {
        "adamw": optimizers.AdamWConfig,
        "muon": optimizers.MuonConfig,
        "demo": optimizers.MuonConfig,
        "adamw_fine_tuning": optimizers.AdamWConfig,
        "adamw_rl": optimizers.AdamWConfig,
    },
    "schedule": {
        "constant": schedules.ConstantSchedule,
        "linear": schedules.LinearSchedule,
        "cosine": schedules.CosineSchedule,
        "wsd": schedules.WSDSchedule,
        "inverse_sqrt": schedules.InverseSqrtSchedule,
        "step": schedules.StepSchedule,
        "demo": schedules.WSDSchedule,
        "constant_brief": schedules.ConstantSchedule,
        "linear_brief": schedules.LinearSchedule,
    },
}
NODES = {"optim": "model.optimizer", "schedule": "model.schedule"}


@pytest.mark.parametrize("group", PRESETS)
def test_every_kind_has_its_file(group):
    assert {file.stem for file in (CONF / group).glob("*.yaml")} == set(PRESETS[group])


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in PRESETS for name in PRESETS[group]])
def test_a_preset_builds_its_config_at_its_node(group, name):
    text = (CONF / group / f"{name}.yaml").read_text()
    assert text.splitlines()[0] == f"# @package {NODES[group]}"
    values = yaml.safe_load(text)
    config_class = PRESETS[group][name]
    kind = next(field.default for field in fields(config_class) if field.name == "kind")
    assert values["kind"] == kind
    assert name == "demo" or name.partition("_")[0] == kind or name == kind
    lists_as_tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    assert config_class(**lists_as_tuples).kind == kind
