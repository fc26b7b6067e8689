"""The environment that torchrun makes, and what else stands in these variables."""

import pytest

from bitbrush.session.launch import launched_ranks

TWO = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_a_process_alone_and_one_of_two() -> None:
    assert launched_ranks({}) == (0, 1)
    assert launched_ranks({"WORLD_SIZE": "1", "RANK": "0"}) == (0, 1)
    assert launched_ranks(TWO) == (1, 2)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["x", "", "-1", "1.5", "9" * 400, "²", " 1", "70000000"])
def test_nonsense_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"the environment variable {name} is '.*'; it must be a whole number from"):
        launched_ranks({**TWO, name: value})


@pytest.mark.parametrize("environment", [{"RANK": "x"}, {"RANK": "1"}, {"WORLD_SIZE": "0"}, {**TWO, "RANK": "2"}])
def test_numbers_must_agree(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"the environment variable (RANK|WORLD_SIZE) is"):
        launched_ranks(environment)


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_several_processes_must_know_each_other(name: str) -> None:
    with pytest.raises(ValueError, match=f"WORLD_SIZE is 2, but the environment has no {name}"):
        launched_ranks({key: value for key, value in TWO.items() if key != name})
