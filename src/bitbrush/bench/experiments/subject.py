"""Description of what an experiment measures."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Subject:
    """Description of a full-precision model, an artifact, or a pipeline that another package quantized.

    Args:
        name: Name in tables.
        source: Bundled name, folder or hub id.
        digest: Digest of the model's weights, or of the artifact.
        denoiser_mib: Size of the denoiser's weight files, or of its tensors as they would be stored.
        memory_mib: Size of the denoiser's tensors in memory.
        float32_mib: Size of all denoiser parameters in float32.
        weight_bits: Average bits of the weights.
        activation_bits: Average bits of the activations.
        operators: Number of denoiser layers by kind and bits.
        runtime: Executor of the layers.
        int8_layers: Number of layers that bitbrush's kernels compute in integers.
        fallbacks: Names of the other quantized layers, by how they are computed instead and why.
        notes: Remarks that a reader should know.
    """

    name: str
    source: str
    digest: str
    denoiser_mib: float
    memory_mib: float
    float32_mib: float
    weight_bits: float
    activation_bits: float
    operators: dict[str, int]
    runtime: str
    int8_layers: int = 0
    fallbacks: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
