"""The messages themselves, word for word: what a user reads is part of the interface."""

from pathlib import Path

import pytest

from lmstack.cli.args import parse_arguments
from lmstack.cli.compose import compose
from lmstack.cli.explain import condensed, mistakes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.transformer.dim=abc"], "model.transformer.dim: expected int, got 'abc'"),
        (["model.transformer.dim=1.5"], "model.transformer.dim: expected int, got 1.5"),
        (["model.transformer.dim=true"], "model.transformer.dim: expected int, got True"),
        (
            ["model.transformer.dmi=3"],
            "model.transformer.dmi: no such key (value 3). Did you mean model.transformer.dim (an int)?",
        ),
        (["model.dim=abc"], "model.dim: no such key (value 'abc'). Did you mean model.transformer.dim (an int)?"),
        (["model.dmi=3"], "model.dmi: no such key (value 3). Did you mean model.transformer.dim (an int)?"),
        (["model.lr=3"], "model.lr: no such key (value 3). Did you mean model.optimizer.lr (a float)?"),
        (
            ["model.zzzz=3"],
            "model.zzzz: no such key (value 3). Keys: transformer, optimizer, coefs, size, fail_with.",
        ),
        (["trainer.max_step=3"], "trainer.max_step: no such key (value 3). Did you mean trainer.max_steps (an int)?"),
        (
            ["data.sequence_len=3"],
            "data.sequence_len: no such key (value 3). Did you mean data.sequence_length (an int)?",
        ),
        (["data.path=3"], "data.path: expected str, got 3"),
        (
            ["model.transformer.positions.kind=rotry"],
            "model.transformer.positions.kind: expected one of rotary, learned, alibi, none, got 'rotry'. "
            "Did you mean rotary?",
        ),
        (
            ["model.transformer.positions.base=3"],
            "model.transformer.positions.base: no such key for kind rotary (value 3). Keys: theta, scaling, kind.",
        ),
        (
            ["model.transformer.positions.kind=alibi", "model.transformer.positions.theta=3"],
            "model.transformer.positions.theta: no such key for kind alibi (value 3). Keys: kind.",
        ),
        (["model.transformer.positions.theta=x"], "model.transformer.positions.theta: expected float, got 'x'"),
        (
            ["model.transformer.norm.kind=rmsnorm"],
            "model.transformer.norm.kind: expected one of rms, layer, got 'rmsnorm'. Did you mean rms?",
        ),
        (
            ["~model.transformer.positions.kind"],
            "model.transformer.positions.kind: required, not given. Set model.transformer.positions.kind to one of "
            "rotary, learned, alibi, none",
        ),
        (
            ["~model.optimizer"],
            "model.optimizer: required, not given (a mapping with kind: fast | slow). Set model.optimizer=...",
        ),
        (["~model.optimizer.lr"], "model.optimizer.lr: required, not given (float). Set model.optimizer.lr=..."),
        (["model.optimizer=3"], "model.optimizer: expected a mapping with kind: fast | slow, got 3"),
        (["model.transformer=null"], "model.transformer: expected a mapping (TransformerConfig), got None"),
        (["model.size=x"], "model.size: expected int | null, got 'x'"),
        (["model.coefs={a: b}"], "model.coefs: expected dict[str, float] | null, got {'a': 'b'}"),
        (["seed_everything=x"], "seed_everything: expected int, got 'x'"),
        (
            ["callbacks=timer", "callbacks.timer.intervall=3"],
            "callbacks.timer.intervall: no such key (value 3). Did you mean callbacks.timer.interval (a str)?",
        ),
        (
            ["+callbacks.x.class_path=lightning.pytorch.callbacks.Tmer"],
            "callbacks.x.class_path: no class 'Tmer' in lightning.pytorch.callbacks. "
            "Did you mean lightning.pytorch.callbacks.Timer?",
        ),
        (
            ["+callbacks.x.class_path=nowhere.Thing"],
            "callbacks.x.class_path: cannot import 'nowhere.Thing': expected package.module.Class",
        ),
        (["+callbacks.x=3"], "callbacks.x: expected a mapping with class_path, got 3"),
    ],
)
def test_each_mistake_is_one_line_with_key_value_rule_and_nearest_name(
    project: Path, overrides: list[str], message: str
) -> None:
    assert mistakes(compose(parse_arguments(["--config", "conf/stub.yaml", *overrides])).values) == [message]


def test_a_right_config_has_no_mistakes(project: Path) -> None:
    overrides = ["callbacks=timer", "logger=csv", "model.coefs={a: 1}", "model.size=null", "optim=slow"]
    assert mistakes(compose(parse_arguments(["--config", "conf/stub.yaml", *overrides])).values) == []


def test_several_mistakes_are_several_lines(project: Path) -> None:
    overrides = ["model.transformer.dim=abc", "trainer.max_step=3"]
    found = mistakes(compose(parse_arguments(["--config", "conf/stub.yaml", *overrides])).values)
    assert [line.partition(":")[0] for line in found] == ["model.transformer.dim", "trainer.max_step"]


def test_what_the_signatures_do_not_show_is_still_one_line() -> None:
    assert condensed('Problem with "x":\n  - Given value type: 3\n  - Expected y\n') == 'Problem with "x":; Expected y'
