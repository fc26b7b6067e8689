"""Recording of CUDA graphs, with torch's functions replaced: what it records, keeps and shares."""

import copy
import gc
import weakref
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitbrush.runtime.cuda.graphs import CudaGraphs


class FakeCuda:
    """Torch's functions for graphs, which note what they are asked for."""

    def __init__(self) -> None:
        self.pools: list[Any] = []
        self.replays = 0
        self.emptied_before: list[int] = []

    def graph(self, _: object, *, pool: object, capture_error_mode: str) -> AbstractContextManager[None]:
        assert capture_error_mode == "thread_local"
        self.pools.append(pool)
        return nullcontext()

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake, stream = FakeCuda(), SimpleNamespace(wait_stream=lambda _: None)
    functions = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=fake.replay),
        "graph": fake.graph,
        "graph_pool_handle": object,
        "empty_cache": lambda: fake.emptied_before.append(len(fake.pools)),
    }
    for name, function in functions.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return fake


def test_a_graph_replays_its_result_and_keeps_the_tensors_that_it_reads(cuda: FakeCuda) -> None:
    latents = torch.ones(3)
    kept = weakref.ref(latents)
    replay = CudaGraphs()(lambda latents=latents: latents + 1)
    del latents
    gc.collect()
    assert kept() is not None, "the graph would read memory that was given away"
    first = replay()
    assert replay() is first
    assert torch.equal(first, torch.full((3,), 2.0))
    assert cuda.replays == 2


def test_graphs_of_a_recorder_share_a_pool_and_a_copy_has_its_own(cuda: FakeCuda) -> None:
    record = CudaGraphs()
    record(lambda: torch.ones(1))
    record(lambda: torch.ones(1))
    copy.deepcopy(record)(lambda: torch.ones(1))
    assert cuda.pools[0] is cuda.pools[1]
    assert cuda.pools[2] is not cuda.pools[0]


def test_memory_of_the_warm_up_is_given_back_before_each_recording(cuda: FakeCuda) -> None:
    record = CudaGraphs()
    for _ in range(2):
        record(lambda: torch.ones(1))
    assert cuda.emptied_before == [0, 1]
