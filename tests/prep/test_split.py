from lmstack.prep.split import is_validation


def test_about_the_fraction_of_the_keys_is_held_out_and_more_with_a_larger_fraction() -> None:
    keys = [f"key {i}" for i in range(20_000)]
    held_out = {fraction: {k for k in keys if is_validation(k, 3, fraction)} for fraction in (0.0, 0.01, 0.1, 1.0)}
    assert held_out[0.0] == set()
    assert held_out[1.0] == set(keys)
    assert abs(len(held_out[0.01]) - 200) < 60  # four standard deviations
    assert abs(len(held_out[0.1]) - 2000) < 170
    assert held_out[0.01] < held_out[0.1]


def test_another_seed_holds_out_other_keys() -> None:
    first, second = ({i for i in range(2000) if is_validation(str(i), seed, 0.1)} for seed in (0, -1))
    assert len(first & second) < 60  # 20 expected


def test_the_split_never_changes_between_versions() -> None:
    assert [i for i in range(100) if is_validation(str(i), 0, 0.1)] == PINNED


PINNED = [3, 9, 16, 21, 38, 46, 66, 67, 68, 79, 92]
