"""Schema of an artifact's manifest and of the quantization entry in its denoiser's configuration."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from bitbrush.numerics.limits import MAX_WEIGHT_BITS, MIN_WEIGHT_BITS

Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Size = Annotated[int, Meta(ge=0, lt=2**62)]
Dimension = Annotated[int, Meta(ge=1, le=2**31)]
WeightBits = Annotated[int, Meta(ge=MIN_WEIGHT_BITS, le=MAX_WEIGHT_BITS)]
Rank = Annotated[int, Meta(ge=1, le=2**16)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Finite = Annotated[float, Meta(gt=-1e300, lt=1e300)]
Positive = Annotated[float, Meta(ge=0, lt=1e300)]
Component = Annotated[str, Meta(pattern="^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Recipe = dict[Name, Any]
"""Keys of a recipe; :class:`~bitbrush.methods.recipe.Recipe` checks the values."""


class Lora(TypedDict):
    """LoRA that was fused before quantization."""

    file: str
    scale: Finite
    sha256: Digest


class Options(TypedDict):
    """Loading options of the full-precision model."""

    revision: NotRequired[str]
    variant: NotRequired[str]
    config: NotRequired[str]
    loras: NotRequired[list[Lora]]


class License(TypedDict):
    """Licence of the full-precision model, under the keys of its model card."""

    license: Annotated[str, Meta(min_length=1, max_length=200)]
    license_name: NotRequired[Annotated[str, Meta(min_length=1, max_length=200)]]
    license_link: NotRequired[Annotated[str, Meta(min_length=1, max_length=1000)]]


class Predecessor(TypedDict):
    """Artifact that was recalibrated."""

    digest: Digest
    recipe: Recipe


class ProductBits(TypedDict):
    """Average bits of both operands over all multiplications of the denoiser's quantized layers."""

    weights: Positive
    activations: Positive


class Plan(TypedDict):
    """Sampling plan of the calibration."""

    scheduler: Name
    timesteps: Annotated[list[Finite], Meta(min_length=1, max_length=100_000)]
    average_activation_bits: Positive
    start_token_ratio: NotRequired[Positive | None]
    product_bits: NotRequired[ProductBits]


class Denoiser(TypedDict):
    """Name, family and sizes of the denoiser."""

    component: Component
    family: Name
    bytes: Size
    full_precision_bytes: Annotated[int, Meta(ge=1, lt=2**62)]
    checkpoint_bytes: NotRequired[Annotated[int, Meta(ge=1, lt=2**62)]]


class Layer(TypedDict):
    """Treatment of a Conv2d or Linear; earlier versions named ``high_precision`` ``edge``, and had ``groups``."""

    name: Name
    kind: Name
    shape: Annotated[list[Dimension], Meta(min_length=2, max_length=4)]
    weight_bits: Annotated[int, Meta(ge=MIN_WEIGHT_BITS, le=32)]
    high_precision: NotRequired[bool]
    edge: NotRequired[bool]
    excluded: str | None
    factor: NotRequired[bool]
    groups: NotRequired[Rank]


class Table(TypedDict):
    """Embedding table with 8 bits per row."""

    name: Name
    shape: Annotated[list[Dimension], Meta(min_length=2, max_length=2)]


class Network(TypedDict):
    """Quantized network beside the denoiser: sizes, layers and embedding tables."""

    bytes: Size
    full_precision_bytes: Annotated[int, Meta(ge=1, lt=2**62)]
    checkpoint_bytes: NotRequired[Annotated[int, Meta(ge=1, lt=2**62)]]
    layers: Annotated[list[Layer], Meta(min_length=1, max_length=100_000)]
    tables: Annotated[list[Table], Meta(max_length=1000)]


class Cost(TypedDict):
    """Cost of a phase."""

    seconds: Positive
    peak_mib: Positive
    denoiser_calls_per_batch: NotRequired[Size]


class Manifest(TypedDict):
    """Manifest of schema version 1."""

    format: str
    schema_version: Annotated[int, Meta(ge=1)]
    base_model: str
    base_model_digest: NotRequired[Digest]
    base_model_options: NotRequired[Options]
    base_model_license: NotRequired[License]
    recalibrated_from: NotRequired[Predecessor]
    recipe: Recipe
    pipeline_class: NotRequired[Name]
    plan: Plan
    denoiser: Denoiser
    layers: Annotated[list[Layer], Meta(min_length=1, max_length=100_000)]
    networks: NotRequired[Annotated[dict[Component, Network], Meta(min_length=1, max_length=16)]]
    processes: NotRequired[Rank]
    cost: dict[Name, Cost]
    versions: dict[Name, str]
    files: Annotated[dict[Name, Digest], Meta(min_length=1, max_length=10_000)]


class DenoiserManifest(TypedDict):
    """Manifest of a denoiser without a pipeline; entries on the origin are left out where it is not known."""

    format: str
    schema_version: Annotated[int, Meta(ge=1)]
    base_model: NotRequired[str]
    base_model_digest: NotRequired[Digest]
    base_model_options: NotRequired[Options]
    base_model_license: NotRequired[License]
    recalibrated_from: NotRequired[Predecessor]
    recipe: Recipe
    plan: NotRequired[Plan]
    denoiser: Denoiser
    layers: Annotated[list[Layer], Meta(min_length=1, max_length=100_000)]
    versions: dict[Name, str]
    files: Annotated[dict[Name, Digest], Meta(min_length=1, max_length=10)]


class QuantizationEntry(TypedDict):
    """Entry ``quantization_config`` of the denoiser's configuration; earlier versions had ``correction``."""

    quant_method: NotRequired[str]
    weight_bits: Annotated[dict[Name, WeightBits], Meta(min_length=1, max_length=100_000)]
    split_skips: NotRequired[dict[Name, Dimension]]
    low_ranks: NotRequired[dict[Name, Rank]]
    first_tokens: NotRequired[list[Name]]
    embeddings: NotRequired[list[Name]]
    tied_embeddings: NotRequired[dict[Name, Name]]
    correction: NotRequired[Any]


def require_uncorrected(packed: Mapping[str, Any]) -> None:
    """Rejects artifacts with output correction, which earlier versions made with ``output_means = correct``.

    Raises:
        ValueError: The configuration requests an output correction.
    """
    if packed.get("correction") is not None:
        raise ValueError("its output is corrected (output_means), which this bitbrush has no more; quantize again")


class WeightIndex(TypedDict):
    """Index of a network's weights in several files."""

    metadata: NotRequired[dict[str, Any]]
    weight_map: Annotated[dict[Name, Name], Meta(min_length=1, max_length=100_000)]


class Token(TypedDict):
    """Token that a tokenizer treats by itself."""

    content: str
    lstrip: NotRequired[bool]
    normalized: NotRequired[bool]
    rstrip: NotRequired[bool]
    single_word: NotRequired[bool]
    special: NotRequired[bool]


Side = Literal["left", "right"]
SpecialToken = str | Token | None


class TokenizerConfiguration(TypedDict):
    """Entries of ``tokenizer_config.json`` that decide what a tokenizer gives."""

    model_max_length: NotRequired[Annotated[int, Meta(ge=1)] | Annotated[float, Meta(ge=1)]]
    tokenizer_class: NotRequired[str]
    model_input_names: NotRequired[list[str]]
    padding_side: NotRequired[Side]
    truncation_side: NotRequired[Side]
    added_tokens_decoder: NotRequired[dict[Annotated[str, Meta(pattern="^[0-9]{1,7}$")], Token]]
    extra_ids: NotRequired[Annotated[int, Meta(ge=0, le=10_000)]]
    bos_token: NotRequired[SpecialToken]
    eos_token: NotRequired[SpecialToken]
    unk_token: NotRequired[SpecialToken]
    pad_token: NotRequired[SpecialToken]
    sep_token: NotRequired[SpecialToken]
    cls_token: NotRequired[SpecialToken]
    mask_token: NotRequired[SpecialToken]
    add_prefix_space: NotRequired[bool | None]
    add_bos_token: NotRequired[bool | None]
    add_eos_token: NotRequired[bool | None]
    clean_up_tokenization_spaces: NotRequired[bool | None]
    do_lower_case: NotRequired[bool | None]
    split_special_tokens: NotRequired[bool | None]
