"""Runs of the demo, their metrics, and its ``results.json``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bitbrush.artifact.sizes import DenoiserSizes
from bitbrush.bench.experiments.protocol import plan_entries
from bitbrush.bench.experiments.results import results_document, results_text
from bitbrush.bench.experiments.value_table import Row, TableImages, value_rows
from bitbrush.bench.images.generation import Generated
from bitbrush.bench.images.paired_runs import latent_mse_by_step, paired_metrics
from bitbrush.bench.metrics.paired import paired_figures
from bitbrush.quantization.quantize import Quantization

BASELINE, METHOD = "rtn", "best"
"""Methods that the demo compares: round-to-nearest and the default."""
OTHER_SEED = "other seed"
COMMAND = "bitbrush demo"
EXPERIMENT = "demo"


@dataclass(frozen=True)
class DemoRun:
    """Full precision, the same with other noise, and the candidates on the same prompts.

    Attributes:
        model: Name of the bundled model.
        seed: Seed of the initial noise.
        prompts: Prompts by style.
        quantized: Quantized pipelines by method.
        sizes: Sizes of their artifacts.
        reference: Images of full precision by style.
        other_seed: The same from another seed.
        candidates: Images by method and style.
    """

    model: str
    seed: int
    prompts: Mapping[str, Sequence[str]]
    quantized: Mapping[str, Quantization]
    sizes: Mapping[str, DenoiserSizes]
    reference: Mapping[str, Generated]
    other_seed: Mapping[str, Generated]
    candidates: Mapping[str, Mapping[str, Generated]]

    @cached_property
    def metrics(self) -> dict[str, dict[str, Mapping[str, NDArray[np.float64]]]]:
        """Values of each metric, one for a pair, by candidate and style; ``OTHER_SEED`` is a candidate."""
        runs = {**self.candidates, OTHER_SEED: self.other_seed}
        return {
            name: {style: paired_metrics(reference, run[style]) for style, reference in self.reference.items()}
            for name, run in runs.items()
        }

    def all_pairs(self, candidate: str, metric: str) -> NDArray[np.float64]:
        """Returns the values of all styles together, ``(N,)``."""
        return np.concatenate([metrics[metric] for metrics in self.metrics[candidate].values()])

    def error_by_step(self, candidate: str) -> NDArray[np.float64]:
        """Returns the latent MSE after each denoiser call, all styles together, ``(N, T)``."""
        runs = self.candidates[candidate]
        return np.concatenate([latent_mse_by_step(self.reference[style], runs[style]) for style in self.reference])


def demo_results(run: DemoRun) -> str:
    """Serializes all figures of the page, and those behind it, as JSON."""
    content = {
        "denoiser_bytes": {name: asdict(sizes) for name, sizes in run.sizes.items()},
        "recipes": {name: quantization.recipe.to_dict() for name, quantization in run.quantized.items()},
        "metrics": {
            name: {
                style: {metric: asdict(figure) for metric, figure in paired_figures(metrics).items()}
                for style, metrics in styles.items()
            }
            for name, styles in run.metrics.items()
        },
        "latent_mse_by_step": {name: stats.gmean(run.error_by_step(name), axis=0).tolist() for name in run.candidates},
        "cost": {
            name: {stage: vars(cost) for stage, cost in quantization.costs.items()}
            for name, quantization in run.quantized.items()
        },
    }
    source, plan = run.quantized[METHOD].source, run.quantized[METHOD].recipe.plan
    protocol = {
        "model": run.model,
        **plan_entries(source, plan),
        "seed": run.seed,
        "prompt_sets": [{"name": style, "prompts": len(prompts)} for style, prompts in run.prompts.items()],
    }
    return results_text(results_document(EXPERIMENT, command=COMMAND, protocol=protocol, content=content))


def demo_rows(run: DemoRun) -> Iterator[Row]:
    """Yields a row for each image, candidate and metric, another seed included."""
    for name, styles in run.metrics.items():
        seed = run.seed + (name == OTHER_SEED)
        for style, metrics in styles.items():
            images = TableImages(style, run.prompts[style], [seed] * len(run.prompts[style]))
            values = {metric: of_images.tolist() for metric, of_images in metrics.items()}
            yield from value_rows(EXPERIMENT, name, images, values)
