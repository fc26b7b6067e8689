"""Exchanges between processes, with torch.distributed replaced."""

import pytest
import torch
from torch import Tensor, distributed

from bitbrush.session.ranks import Ranks, ranks
from tests.fake_card import OnCard, fake_card


def test_a_tensor_of_a_gpu_is_exchanged_through_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanged: list[Tensor] = []

    def doubled(x: Tensor, *_: object) -> None:
        exchanged.append(x)
        x.mul_(2)

    monkeypatch.setattr(distributed, "all_reduce", doubled)
    with fake_card(monkeypatch) as card:
        x = torch.arange(3.0, device=card)
        total = Ranks(0, 2).sum(x)
        assert total is x, "the result is where the values were"
        assert total.tolist() == [0.0, 2.0, 4.0]
    assert not any(isinstance(tensor, OnCard) for tensor in exchanged), "gloo works on the CPU's memory"


def test_processes_that_torchrun_started_compute_on_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[int] = []
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**environment, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for gpus in (2, 1, 0):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        with ranks() as group:
            assert (group.rank, group.world) == (1, 2)
    assert current == [1], "with fewer GPUs than processes each stays where it is"
