import pytest

from lmstack.cli.launch import would_meet_the_dead

TORCHRUN = {"RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}


def test_torchrun_s_shared_store_is_told_once_where_it_matters() -> None:
    assert would_meet_the_dead(TORCHRUN)
    assert not would_meet_the_dead({})


@pytest.mark.parametrize(
    "change", [{"RANK": "1"}, {"TORCHELASTIC_MAX_RESTARTS": "0"}, {"TORCHELASTIC_USE_AGENT_STORE": "False"}]
)
def test_and_not_where_it_does_not(change: dict[str, str]) -> None:
    assert not would_meet_the_dead(TORCHRUN | change)
