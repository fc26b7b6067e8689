"""Recording of kernel launches as CUDA graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch


@dataclass(frozen=True)
class RecordedGraph:
    """Recorded launches; calling it replays them and returns the recorded result with its new values.

    ``run`` is never called again. It keeps the tensors alive that the graph reads.
    """

    graph: torch.cuda.CUDAGraph
    run: Callable[[], Any]
    result: Any

    def __call__(self) -> Any:
        """Replays the launches."""
        self.graph.replay()
        return self.result


class CudaGraphs:
    """Recorder of an engine's graphs; they share one memory pool, for the engine replays one at a time.

    A result stays valid until the next replay of any of the graphs.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Any]) -> RecordedGraph:
        """Records the launches of ``run``, after a warm-up run on a side stream.

        Memory that the warm-up leaves unused is given back first: the graph's own pool takes as much again.
        """
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # Other threads may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()
        return RecordedGraph(graph, run, result)

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        """Returns a recorder with a pool of its own, because copies replay beside the original."""
        return type(self)()
