from dataclasses import dataclass
from typing import Any, Literal

from lmstack.cli.signatures import REQUIRED, argument_texts, kinds, leaves, signature_of, type_name
from lmstack.models.config import RotaryConfig, TransformerConfig


@dataclass(frozen=True)
class One:
    a: int
    kind: Literal["one"] = "one"


@dataclass(frozen=True)
class Two:
    b: str = "x"
    kind: Literal["two"] = "two"


class Base:
    def __init__(self, root: str, depth: int = 1) -> None: ...


class Child(Base):
    """A child.

    Args:
        part: One of the parts, which is
            explained at length.
        other: Another.

    Raises:
        part: Not an argument.
    """

    def __init__(self, part: One | Two, other: int | None = None, **kwargs: Any) -> None:
        super().__init__("x", **kwargs)


def test_keywords_passed_on_reach_the_parents_and_are_not_required() -> None:
    signature = signature_of(Child)
    assert list(signature.parameters) == ["part", "other", "root", "depth"]
    assert signature.parameters["part"].default is REQUIRED
    assert signature.parameters["root"].default is None
    assert not signature.is_open


def test_docstrings_explain_the_keys() -> None:
    assert argument_texts(Child) == {"part": "One of the parts, which is explained at length.", "other": "Another."}


def test_the_kinds_of_a_union_are_known_by_name() -> None:
    assert kinds(One | Two) == {"one": One, "two": Two}
    assert kinds(One | Two | None) == {"one": One, "two": Two}
    assert kinds(One) == {}
    assert kinds(int | None) == {}


def test_types_are_named_in_the_words_of_a_config() -> None:
    assert type_name(int | None) == "int | null"
    assert type_name(Literal["a", "b"]) == "one of a, b"
    assert type_name(Literal["a"] | Literal["b"] | int) == "one of a, b | int"
    assert type_name(One | Two) == "a mapping with kind: one | two"
    assert type_name(dict[str, list[int]]) == "dict[str, list[int]]"
    assert type_name(RotaryConfig) == "a mapping (RotaryConfig)"


def test_every_key_below_a_class_is_listed_with_dots() -> None:
    found = {name for name, _ in leaves(signature_of(TransformerConfig).parameters, "t")}
    assert {"t.dim", "t.positions.theta", "t.positions.scaling.beta_fast", "t.initialization.base_dim"} <= found
