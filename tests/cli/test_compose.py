import json
import os
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.args import parse_arguments
from lmstack.cli.compose import Composition, compose, locate, packaged_conf
from lmstack.cli.failures import ConfigError
from lmstack.cli.resolvers import vocab_size


def composed(*overrides: str, config: str = "conf/stub.yaml") -> dict[str, Any]:
    return whole(*overrides, config=config).values


def whole(*overrides: str, config: str = "conf/stub.yaml") -> Composition:
    return compose(parse_arguments(["--config", config, *overrides]))


@pytest.fixture(autouse=True)
def _in_project(project: Path) -> None:
    del project


def test_the_defaults_list_is_composed_and_interpolations_are_resolved() -> None:
    config = composed()
    assert config["model"]["transformer"]["max_seq_len"] == 8
    assert config["model"]["optimizer"] == {"kind": "fast", "lr": 0.1, "momentum": 0.5}
    assert config["trainer"]["default_root_dir"] == "runs/stub"
    assert "hydra" not in config


def at(config: dict[str, Any], path: str) -> Any:
    node: Any = config
    for part in path.split("."):
        node = node[part]
    return node


def test_an_override_wins_at_every_depth() -> None:
    wanted = {
        "model=large": ("model.transformer.num_layers", 2),
        "optim=slow": ("model.optimizer.kind", "slow"),
        "callbacks=timer": ("callbacks.timer.class_path", "lightning.pytorch.callbacks.Timer"),
        "seed_everything=7": ("seed_everything", 7),
        "trainer.max_steps=5": ("trainer.max_steps", 5),
        "trainer.deterministic=true": ("trainer.deterministic", True),  # not in any file
        "model.transformer.dim=32": ("model.transformer.dim", 32),
        "model.transformer.positions.theta=1e6": ("model.transformer.positions.theta", 1e6),
        "--model.optimizer.lr=3e-4": ("model.optimizer.lr", 3e-4),
        "+model.coefs.a=2.5": ("model.coefs", {"a": 2.5}),
        "++model.size=3": ("model.size", 3),
        "callbacks.timer.interval=step": ("callbacks.timer.interval", "step"),
        "vars.name=other": ("trainer.default_root_dir", "runs/other"),
        "+callbacks.t.class_path=x.Y": ("callbacks.t.class_path", "x.Y"),
    }
    config = composed(*wanted)
    assert {override: at(config, path) for override, (path, _) in wanted.items()} == {
        override: value for override, (_, value) in wanted.items()
    }


@pytest.mark.parametrize("override", ["experiment=wide", "+experiment=wide"])
def test_an_experiment_is_laid_over_everything(override: str) -> None:
    config = composed(override)
    assert (at(config, "model.transformer.dim"), at(config, "model.optimizer.lr")) == (16, 0.3)


def test_the_command_line_wins_over_an_experiment() -> None:
    config = composed("experiment=wide", "model.optimizer.lr=0.7", "model=small")
    assert config["model"]["optimizer"]["lr"] == 0.7
    assert config["model"]["transformer"]["dim"] == 8


def test_an_override_steps_through_init_args() -> None:
    Path("conf/callbacks/nested.yaml").write_text("t: {class_path: a.B, init_args: {x: 1, y: 2}}\n")
    assert composed("callbacks=nested", "callbacks.t.x=5")["callbacks"]["t"] == {"class_path": "a.B", "x": 5, "y": 2}


def test_a_key_can_be_dropped() -> None:
    assert "timer" not in composed("callbacks=timer", "~callbacks.timer")["callbacks"]


def test_an_option_may_hold_text_that_hydra_could_not_parse() -> None:
    assert composed("--vars.note", 'a (b: "c"], d')["vars"]["note"] == 'a (b: "c"], d'


def test_another_kind_starts_its_node_afresh() -> None:
    positions = composed("model.transformer.positions.kind=alibi")["model"]["transformer"]["positions"]
    assert positions == {"kind": "alibi"}


def test_overrides_below_a_changed_kind_are_kept_in_any_order() -> None:
    config = composed("model.optimizer.lr=0.9", "model.optimizer.kind=slow", "model.optimizer.patience=4")
    assert config["model"]["optimizer"] == {"kind": "slow", "lr": 0.9, "patience": 4}


def test_the_same_kind_again_keeps_the_node() -> None:
    config = composed("model.transformer.positions.kind=rotary")
    assert config["model"]["transformer"]["positions"] == {"kind": "rotary", "theta": 500.0}


def test_a_whole_node_with_another_kind_replaces_the_node() -> None:
    config = composed("model.transformer.initialization={kind: mup, base_dim: 4, base_head_dim: 2}")
    assert config["model"]["transformer"]["initialization"] == {"kind": "mup", "base_dim": 4, "base_head_dim": 2}


def test_a_kind_that_is_one_field_among_others_drops_nothing() -> None:
    config = composed("model.transformer.norm.kind=layer")
    assert config["model"]["transformer"]["norm"] == {"kind": "layer", "eps": 1e-6}


def test_a_file_that_changes_a_kind_starts_the_node_afresh() -> None:
    Path("conf/experiment/nope.yaml").write_text(
        "# @package _global_\nmodel: {transformer: {positions: {kind: none}, norm: {kind: layer}}}\n"
    )
    transformer = composed("experiment=nope")["model"]["transformer"]
    assert transformer["positions"] == {"kind": "none"}
    assert transformer["norm"] == {"kind": "layer", "eps": 1e-6}


def test_another_class_path_starts_its_node_afresh() -> None:
    config = composed("callbacks=timer", "callbacks.timer.class_path=a.B")
    assert config["callbacks"]["timer"] == {"class_path": "a.B"}


def test_a_plain_saved_file_is_composed_like_any_other(tmp_path: Path) -> None:
    Path("mine.yaml").write_text("stage: causal_lm\nmodel: {optimizer: {kind: fast, lr: 1.0}}\n")
    assert composed("model.optimizer.lr=2", config="mine.yaml")["model"]["optimizer"]["lr"] == 2


def test_packaged_groups_are_found_from_a_project_of_ones_own() -> None:
    assert not Path("conf/schedule").exists()
    config = composed("+schedule=cosine")
    assert config["model"]["schedule"]["kind"] == "cosine"


def test_a_users_file_wins_over_the_packaged_one() -> None:
    assert (packaged_conf() / "optim" / "muon.yaml").exists()
    Path("conf/optim/muon.yaml").write_text("# @package model.optimizer\nkind: mine\n")
    assert composed("optim=muon")["model"]["optimizer"]["kind"] == "mine"


def test_a_packaged_root_file_is_found_without_a_conf_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    root, name = locate("conf/pretrain.yaml")
    assert (root, name) == (packaged_conf(), "pretrain")


def test_the_run_id_is_one_for_the_whole_process_and_its_children() -> None:
    config = composed("trainer.default_root_dir=runs/${run_id:}", "vars.again=${run_id:}")
    assert config["trainer"]["default_root_dir"] == f"runs/{config['vars']['again']}"
    assert os.environ["LMSTACK_RUN_ID"] == config["vars"]["again"]
    assert composed("vars.again=${run_id:}")["vars"]["again"] == config["vars"]["again"]


def test_the_vocabulary_comes_from_the_corpus() -> None:
    Path("corpus").mkdir()
    Path("corpus/manifest.json").write_text(json.dumps({"tokenizer": {"vocab_size": 77}}))
    assert composed('vars.v="${vocab_size:${data.path}}"')["vars"]["v"] == 77


def test_the_vocabulary_comes_from_a_corpus_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMSTACK_CACHE", str(tmp_path / "cache"))
    Path("bucket").mkdir()
    Path("bucket/manifest.json").write_text(json.dumps({"tokenizer": {"vocab_size": 78}}))
    assert vocab_size(f"local:{Path('bucket').absolute()}") == 78
    with pytest.raises(ConfigError, match=r"data\.path: local:.*cannot be fetched"):
        vocab_size("local:/nowhere")


def test_arithmetic_in_interpolations() -> None:
    config = composed('vars.a="${mul:${data.sequence_length},3}"', 'vars.b="${div:${data.sequence_length},2}"')
    assert (config["vars"]["a"], config["vars"]["b"]) == (24, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=smal"], "model=smal: no such option. Did you mean small? Options of model: "),
        (["experiment=wode"], "experiment=wode: no such option. Did you mean wide? Options of experiment: "),
        (["data=3"], "data=3: expected a file of conf/data. Options: "),
        (["trainer=3"], "trainer=3: expected a file of conf/trainer. Options: "),
        (
            ["modle.transformer.dim=4"],
            "modle.transformer.dim: no such key (value '4'). Did you mean model.transformer.dim?",
        ),
        (["modle=small"], "modle: no such key (value 'small'). Did you mean model?"),
        (["qq=1"], "qq: no such key (value '1'). Keys: stage, vars, "),
        (["vars.x=${vars.nmae}"], "vars.x: Interpolation key 'vars.nmae' not found"),
        (["vars.x=${vocab_size:nowhere}"], "data.path: the corpus 'nowhere' is not there. Build it with "),
        (["vars.x=${div:7,2}"], "${div:7,2}: 7 is not a multiple of 2."),
        (["vars.x=[1"], "cannot read '++vars.x=[1': "),
        (["vars.x=???"], "vars.x: required, not given. Set vars.x=..."),
        (["trainer.accumulate_grad_batches=4"], "trainer.accumulate_grad_batches=4: one batch of the loader is one "),
        (["trainer.max_epochs=4"], "trainer.max_epochs=4: a run's length belongs to trainer.max_steps "),
        (["trainer.check_val_every_n_epoch=1"], "trainer.check_val_every_n_epoch=1: validation belongs to "),
        (["trainer.callbacks=[]"], "trainer.callbacks=[]: callbacks belong to the mapping `callbacks`"),
        (["trainer.logger=false"], "trainer.logger=False: loggers belong to the mapping `logger`"),
        (
            ["data.max_tokens=9", "trainer.max_steps=2"],
            "trainer.max_steps=2 and data.max_tokens=9 both set the length of the run. Keep one ",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed(*overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_length_in_tokens_replaces_one_in_steps() -> None:
    assert composed("data.max_tokens=64", "trainer.max_steps=-1")["data"]["max_tokens"] == 64
    assert composed("data.max_tokens=64", "trainer.max_steps=null")["data"]["max_tokens"] == 64


def test_a_length_that_is_typed_wins_over_the_other_one_in_a_file() -> None:
    config = composed("data.max_tokens=64")
    assert (config["data"]["max_tokens"], config["trainer"]["max_steps"]) == (64, -1)


def test_a_missing_file_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^conf/stubb.yaml: no such file. Did you mean conf/stub.yaml\?$"):
        composed(config="conf/stubb.yaml")


@pytest.mark.parametrize("text", ["a: [1\n", "a: 1\na: 2\n", "a:\n\t- b\n"])
def test_broken_yaml_names_the_file_and_the_line(text: str) -> None:
    Path("conf/broken.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"conf/broken.yaml, line \d: not valid YAML"):
        composed(config="conf/broken.yaml")


def test_a_file_that_builds_on_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [/mine, _self_]\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: its defaults lead back to itself"):
        composed(config=str(tmp_path / "mine.yaml"))


def test_a_damaged_manifest_is_named() -> None:
    Path("corpus").mkdir()
    Path("corpus/manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"corpus/manifest.json is damaged"):
        composed("vars.v=${vocab_size:corpus}")
    Path("corpus/manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"the corpus 'corpus' is unfinished"):
        composed("vars.v=${vocab_size:corpus}")
