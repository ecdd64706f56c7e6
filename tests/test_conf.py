"""Every root file with every option of every group composes, and its keys and values fit the signatures."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmstack.cli.args import parse_arguments
from lmstack.cli.compose import compose, compose_values
from lmstack.cli.explain import mistakes, mistakes_in
from lmstack.cli.signatures import signature_of

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("model", "data", "optim", "schedule", "trainer", "callbacks", "logger", "strategy", "experiment")
ROOTS = sorted(path.name for path in CONF.glob("*.yaml"))
# A recipe is built on another root and lays a few values of its own over it (`_self_` last).
RECIPES = [name for name in ROOTS if yaml.safe_load((CONF / name).read_text())["defaults"][0] != "_self_"]
OPTIONS = sorted((group, path.stem) for group in GROUPS for path in (CONF / group).glob("*.yaml"))
LOCAL_CORPUS = "data.path=corpus"
SAME_DATA = ("data.sequence_length=64",)


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


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: str(value))
@pytest.mark.parametrize("root", ROOTS)
def test_every_option_fits_every_root(root: str, group: str, option: str) -> None:
    assert mistakes(composed(root, f"{group}={option}")) == []


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
    tools = {"corpus", "tokenizer", "sources"}
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*GROUPS, *tools}


@pytest.mark.parametrize("path", sorted((CONF / "corpus").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_corpus_file_fits_data_build(path: Path) -> None:
    from lmstack.cli.data import build

    assert tool_mistakes(build, path) == []


@pytest.mark.parametrize("path", sorted((CONF / "tokenizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_tokenizer_file_fits_tokenizer_train(path: Path) -> None:
    from lmstack.cli.tokenizer import train

    assert tool_mistakes(train, path) == []


def tool_mistakes(function: Any, path: Path) -> list[str]:
    _, values = compose_values(parse_arguments(["--config", str(path)]))
    return mistakes_in(values, signature_of(function))


def test_a_wrong_file_would_be_noticed() -> None:
    assert mistakes(composed("pretrain.yaml", "model.transformer.dimm=3")) != []
