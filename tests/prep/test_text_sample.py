import tracemalloc

import pytest

from lmstack.prep.text_sample import plan_sample, sample_text

SIZES = {"web": 6000, "books": 1000}


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"sample_bytes": 3500}, {"web": 0.5, "books": 0.5}),
        ({"weights": {"web": 1.0, "books": 1.0}}, {"web": 3500 / 6000, "books": 3.5}),
        ({"sample_bytes": 4000, "weights": {"web": 3.0, "books": 1.0}}, {"web": 0.5, "books": 1.0}),
        ({"weights": {"web": 1.0, "books": 0.0}}, {"web": 7 / 6, "books": 0.0}),
        ({"temperature": 1.0}, {"web": 1.0, "books": 1.0}),
    ],
)
def test_the_shares_are_those_asked_for(options: dict, copies: dict[str, float]) -> None:
    plan = plan_sample(SIZES, **({"sample_bytes": None, "weights": None, "temperature": None} | options))
    assert {name: source.copies for name, source in plan.items()} == pytest.approx(copies)


LINES = [f"line {i} of the text\n" for i in range(40_000)]
TEXT = "".join(LINES)


@pytest.mark.parametrize("copies", [0.0, 0.25, 1.0, 2.5])
def test_about_as_many_copies_of_whole_lines_are_taken(copies: float) -> None:
    taken = list(sample_text([TEXT, "short"], copies, "seed"))
    assert sum(map(len, taken)) / len(TEXT) == pytest.approx(copies, abs=0.1)  # over 200 stretches, 4 standard errors
    assert {line for stretch in taken for line in stretch.splitlines(keepends=True)} <= {*LINES, "short"}
    if copies == 1.0:
        assert "".join(taken) == TEXT + "short"


def test_the_seed_decides_what_is_taken() -> None:
    first, again, other = (list(sample_text([TEXT], 0.3, seed)) for seed in ("1 web", "1 web", "1 books"))
    assert first == again != other


def test_memory_does_not_grow_with_the_text() -> None:
    texts = (f"{i} {'x' * 70}\n" * 1000 for i in range(300))  # 22 MB
    tracemalloc.start()
    for _ in sample_text(texts, 0.5, "seed"):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_bytes": 0}, "sample_bytes=0: must be 1 or more"),
        ({"weights": {"web": 1.0}}, r"weights names \['web'\], there are \['books', 'web'\]"),
        ({"temperature": -1.0}, "temperature=-1.0: must be above 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_sample(SIZES, **({"sample_bytes": None, "weights": None, "temperature": None} | options))
    with pytest.raises(ValueError, match="Source 'books' holds no text"):
        plan_sample({"web": 1, "books": 0}, sample_bytes=None, weights=None, temperature=1.0)
