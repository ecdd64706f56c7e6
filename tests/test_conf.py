"""Every root file with every option of every group composes, and its keys and values fit the signatures."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmstack.cli.args import parse_arguments
from lmstack.cli.compose import compose, compose_values
from lmstack.cli.explain import mistakes, mistakes_in
from lmstack.cli.failures import ConfigError
from lmstack.cli.signatures import signature_of

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("model", "data", "optim", "schedule", "trainer", "callbacks", "logger", "strategy", "precision", "experiment")
ROOTS = sorted(path.name for path in CONF.glob("*.yaml"))
# A recipe is built on another root and lays a few values of its own over it (`_self_` last).
RECIPES = [name for name in ROOTS if yaml.safe_load((CONF / name).read_text())["defaults"][0] != "_self_"]
OPTIONS = sorted((group, path.stem) for group in GROUPS for path in (CONF / group).glob("*.yaml"))
LOCAL_CORPUS = "data.path=corpus"
SAME_DATA = ("data.sequence_length=64",)
ANSWERING = ("ppo", "grpo")
FINE_TUNING = ("sft", "reward_model", "dpo")
# Options that fit some stages only: each reads its own kind of data, and some take their shape from where they start.
STAGES_OF_DATA = {
    "stdlib": ("causal_lm",),
    "assistant_demonstrations": ("sft",),
    "assistant_comparisons": ("reward_model", "dpo"),
    "assistant_prompts": ANSWERING,
}
STAGES_OF_GROUP = {"model": ("causal_lm", *FINE_TUNING), "experiment": ("causal_lm",)}
LENGTHS = {"causal_lm": (), **dict.fromkeys(FINE_TUNING, ("data.num_epochs=null",))}
LENGTHS |= dict.fromkeys(ANSWERING, ("data.num_episodes=null",))


@pytest.fixture(autouse=True)
def _a_corpus_and_the_packages_a_logger_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.json").write_text(json.dumps({"tokenizer": {"vocab_size": 300}}))


def test_there_are_roots_of_both_sorts() -> None:
    assert "pretrain.yaml" in ROOTS
    assert "demo.yaml" in RECIPES


def composed(root: str, *overrides: str) -> dict[str, Any]:
    return compose(parse_arguments(["--config", str(CONF / root), *overrides, LOCAL_CORPUS])).values


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_file_composes_and_fits_the_signatures(root: str) -> None:
    assert mistakes(composed(root)) == []


def stage_of(root: str) -> str:
    values = yaml.safe_load((CONF / root).read_text())
    return str(values["stage"]) if "stage" in values else stage_of(f"{values['defaults'][0]}.yaml")


def fits(root: str, group: str, option: str) -> bool:
    stages = STAGES_OF_DATA[option] if group == "data" else STAGES_OF_GROUP.get(group)
    return stages is None or stage_of(root) in stages


FITTING = [(root, group, option) for root in ROOTS for group, option in OPTIONS if fits(root, group, option)]
# The keys of demonstrations are also keys of comparisons: there, the rows are refused when they are read.
ALIKE = {(stage, "assistant_demonstrations") for stage in ("reward_model", "dpo")}
MISFITS = [
    (root, option)
    for root in ROOTS
    for group, option in OPTIONS
    if group == "data" and not fits(root, group, option) and (stage_of(root), option) not in ALIKE
]


@pytest.mark.parametrize(("root", "group", "option"), FITTING)
def test_every_option_fits_every_root_it_is_for(root: str, group: str, option: str) -> None:
    """A trainer's steps are the length of the run where the data's is null."""
    length = LENGTHS[stage_of(root)] if group == "trainer" else ()
    assert mistakes(composed(root, f"{group}={option}", *length)) == []


@pytest.mark.parametrize(("root", "option"), MISFITS)
def test_data_for_another_stage_is_refused_before_anything_runs(root: str, option: str) -> None:
    assert refusals(root, f"data={option}") != []


def refusals(root: str, *overrides: str) -> list[str]:
    try:
        return mistakes(composed(root, *overrides))
    except ConfigError as error:
        return [str(error)]


def test_every_option_is_for_some_root() -> None:
    assert {(group, option) for _, group, option in FITTING} == set(OPTIONS)


@pytest.mark.parametrize("group", ["model", "optim", "schedule"])
@pytest.mark.parametrize("root", RECIPES)
def test_an_option_typed_on_a_recipe_is_that_option_and_nothing_of_the_recipe_s(root: str, group: str) -> None:
    """`optim=adamw` on a recipe that tunes Muon must not leave Muon's values behind."""
    for option in (option for name, option in OPTIONS if name == group):
        key = {"model": "transformer", "optim": "optimizer", "schedule": "schedule"}[group]
        assert (
            composed(root, f"{group}={option}", *SAME_DATA)["model"][key]
            == (composed("pretrain.yaml", f"{group}={option}", *SAME_DATA)["model"][key])
        )


def test_every_group_is_known_here() -> None:
    tools = {"corpus", "tokenizer", "sources", "pipeline"}
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*GROUPS, *tools}


@pytest.mark.parametrize("path", sorted((CONF / "corpus").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_corpus_file_fits_data_build_or_data_prepare(path: Path) -> None:
    from lmstack.cli.data import build
    from lmstack.cli.prepare import prepare

    assert tool_mistakes(prepare if "stages" in path.read_text() else build, path) == []


@pytest.mark.parametrize("path", sorted((CONF / "tokenizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_tokenizer_file_fits_tokenizer_train(path: Path) -> None:
    from lmstack.cli.tokenizer import train

    assert tool_mistakes(train, path) == []


def tool_mistakes(function: Any, path: Path) -> list[str]:
    _, values = compose_values(parse_arguments(["--config", str(path)]))
    return mistakes_in(values, signature_of(function))


def test_a_wrong_file_would_be_noticed() -> None:
    assert mistakes(composed("pretrain.yaml", "model.transformer.dimm=3")) != []
