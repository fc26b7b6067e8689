"""Each number of each configuration changed: the artifact is refused when it is loaded, or it gives an image."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline

import bitbrush
from benchmarks.reliability.trial import rehash
from bitbrush.artifact.documents import ArtifactError
from bitbrush.bench.images.generation import generate
from bitbrush.timeline.trajectory import prompt_batches
from tests.artifact.pipelines import CASES, Case, pipeline, quantized

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of unusual settings of schedulers and tokenizers
]
DEFAULT_SIZE = "unet/config.json: sample_size"
"""Setting that diffusers refuses in the call, with a remedy, where the image's side is no multiple of eight."""


def changes(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields a key and another value of the same kind: lists lose or repeat an element, numbers grow or shrink."""
    for key, value in document.items():
        if key.startswith("_") or key == "quantization_config":
            continue
        if isinstance(value, list) and value:
            yield from ((key, value[:-1]), (key, [*value, value[-1]]))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield from ((key, changed) for changed in {value + 1, 2 * value, value // 2} - {value})
        elif isinstance(value, float):
            yield key, 2 * value


def image(case: Case, pipe: DiffusionPipeline, plan: Any) -> Any:
    return generate(pipe, prompt_batches(("a green tree",), 1, 1, inputs=case.inputs), plan).images


@pytest.mark.parametrize("name", ["sdxl", "pixart", "sd3", "flux-dev"])
def test_a_changed_number_is_refused_or_serves(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    quantization = quantized(case, pipeline(case), rounding="nearest")
    artifact = bitbrush.save(quantization, tmp_path / "artifact", base_model="a/model")
    failed, outcomes = [], {"refused": 0, "image": 0}
    for path in sorted([*artifact.rglob("config.json"), *artifact.rglob("scheduler_config.json")]):
        place = path.relative_to(artifact)
        document = json.loads(path.read_text(encoding="utf-8"))
        for key, value in changes(document):
            copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
            (copy / place).write_text(json.dumps({**document, key: value}), encoding="utf-8")
            rehash(copy)
            try:
                image(case, bitbrush.load(copy, runtime="reference"), quantization.recipe.plan)
                outcomes["image"] += 1
            except ArtifactError:
                outcomes["refused"] += 1
            except Exception as error:  # noqa: BLE001 - what must not happen is listed, whatever it is
                if f"{place.as_posix()}: {key}" != DEFAULT_SIZE:
                    failed.append(f"{place}: {key} {document[key]} to {value}: {error!r:.200}")
            shutil.rmtree(copy)
    assert not failed
    assert min(outcomes.values()) > 20
