import pytest

from lmstack.cli.args import Override, parse_arguments
from lmstack.cli.failures import ConfigError


def test_overrides_options_and_flags_are_told_apart() -> None:
    found = parse_arguments(["--config", "a.yaml", "x.y=1", "+g=h", "~z", "--k.l", "v w", "--m=n", "-m", "--help"])
    assert found.config == "a.yaml"
    assert found.is_sweep
    assert found.wants_help
    assert found.overrides == [
        Override("x.y=1", "x.y", "1"),
        Override("+g=h", "g", "h"),
        Override("~z", "z", None, deletes=True),
        Override("--k.l v w", "k.l", "v w", is_option=True),
        Override("--m n", "m", "n", is_option=True),
    ]


def test_a_value_may_hold_equals_signs_and_newlines() -> None:
    assert parse_arguments(["prompt=a=b\nc"]).overrides[0].value == "a=b\nc"


def test_a_negative_number_is_an_options_value() -> None:
    assert parse_arguments(["--trainer.max_steps", "-1"]).overrides[0].value == "-1"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a=1", "a=2"], "a is given twice, as `a=1` and as `a=2`. Give it once."),
        (["a=1", "--a=1"], "a is given twice, as `a=1` and as `--a 1`. Give it once."),
        (["+a=1", "~a"], "a is given twice, as `+a=1` and as `~a`. Give it once."),
        (["--config", "a", "-c", "b"], "--config is given twice, a and b. Name one; others go into its defaults list."),
        (["--config"], "--config needs a file: --config conf/pretrain.yaml"),
        (["--a.b"], "--a.b needs a value: a.b=..."),
        (["--a.b", "--c=1"], "--a.b needs a value: a.b=..."),
        (["word"], "cannot read 'word': expected key=value, ~key or --key value."),
        (
            ["conf/x.yaml"],
            "cannot read 'conf/x.yaml': expected key=value, ~key or --key value. A config file follows --config: "
            "--config conf/x.yaml",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_arguments(argv)
    assert str(error.value) == message


def test_the_same_override_twice_is_harmless() -> None:
    assert len(parse_arguments(["a=1", "a=1"]).overrides) == 2
