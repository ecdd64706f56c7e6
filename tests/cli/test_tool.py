from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lmstack.cli.args import parse_arguments
from lmstack.cli.failures import ConfigError
from lmstack.cli.tool import run_tool, tool_arguments, tool_help


@dataclass
class Source:
    """A source.

    Attributes:
        path: Where.
        column: Which.
    """

    path: str
    column: str = "text"


def tool(
    *, output: str, sources: dict[str, str | list[str] | Source], tokenizer: str | None = None, count: int = 3
) -> None:
    """Do a thing.

    At some length.

    Args:
        output: Where to.
        sources: From where.
        tokenizer: With what.
        count: How often.
    """
    CALLS.append((output, sources, tokenizer, count))


CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def _in_project(project: Path) -> None:
    CALLS.clear()


def arguments(*argv: str) -> dict[str, Any]:
    return tool_arguments(tool, parse_arguments(list(argv)))


def test_a_signature_is_a_command_line() -> None:
    found = arguments(
        "output=o", "sources.a=x/*.txt", "sources.b=[p,q]", "sources.c={path: r, column: body}", "count=4"
    )
    assert found["sources"] == {"a": "x/*.txt", "b": ["p", "q"], "c": Source("r", "body")}
    assert (found["output"], found["tokenizer"], found["count"]) == ("o", None, 4)


@pytest.mark.parametrize(
    "text", ['def f(x, "y"): {a}', "a,b", "Once upon a time, ", "1", "null hypothesis", "${x", "${x}"]
)
def test_text_is_taken_as_typed(text: str) -> None:
    assert arguments(f"output={text}", "sources.a=b")["output"] == text
    assert arguments("--output", text, "sources.a=b")["output"] == text


def test_null_is_null_where_there_may_be_nothing() -> None:
    assert arguments("output=o", "sources.a=b", "tokenizer=null")["tokenizer"] is None


def test_a_text_key_wins_over_a_group_of_its_name() -> None:
    Path("conf/tokenizer").mkdir()
    Path("conf/tokenizer/mine.yaml").write_text("a: 1\n")
    assert arguments("output=o", "sources.a=b", "tokenizer=mine")["tokenizer"] == "mine"


def test_a_config_file_is_composed_and_overridden() -> None:
    Path("conf/sources").mkdir()
    Path("conf/sources/two.yaml").write_text("# @package _global_\nsources: {a: x, b: y}\n")
    Path("conf/corpus").mkdir()
    Path("conf/corpus/c.yaml").write_text(
        "# @package _global_\ndefaults: [/sources: two, _self_]\noutput: o\ntokenizer: t\n"
    )
    found = arguments("--config", "conf/corpus/c.yaml", "tokenizer=other", "sources.a=z")
    assert found == {"output": "o", "sources": {"a": "z", "b": "y"}, "tokenizer": "other", "count": 3}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["outptu=x", "sources.a=b"], "outptu: no such key (value 'x'). Did you mean output (a str)?"),
        (
            ["output=x"],
            "sources: required, not given (dict[str, str | list[str] | a mapping (Source)]). Set sources=...",
        ),
        (["output=x", "sources.a=b", "count=many"], "count: expected int, got 'many'"),
    ],
)
def test_mistakes_are_told_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        arguments(*argv)
    assert str(error.value) == message


def test_the_docstring_is_the_help() -> None:
    page = tool_help("thing", tool)
    assert page.startswith(
        "usage: lmstack thing [--config <file>.yaml] [key=value ...]\n\nDo a thing.\n\nAt some length.\n"
    )
    assert "str (required). Where to." in page
    assert "int = 3. How often." in page


def test_subcommands_are_listed_found_and_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    table = {"do": f"{__name__}:tool"}
    import sys

    sys.modules.setdefault(__name__, sys.modules[tool.__module__])
    assert run_tool("thing", table, []) == 0
    assert "  do          Do a thing.\n" in capsys.readouterr().out
    assert run_tool("thing", table, ["do", "output=o", "sources.a=b"]) == 0
    assert CALLS == [("o", {"a": "b"}, None, 3)]
    with pytest.raises(ConfigError, match=r"lmstack thing: no such command 'od'. (Did you mean do\?|Commands: do.)"):
        run_tool("thing", table, ["od"])
    with pytest.raises(ConfigError, match="-m sweeps a training command"):
        run_tool("thing", table, ["do", "-m", "output=a,b"])
