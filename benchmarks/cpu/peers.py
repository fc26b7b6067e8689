"""The others, each as a careful user would run it on a CPU; their packages are imported when they are asked for.

All of them read the same weights, stored as bfloat16 where they compute in bfloat16.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from cpu.models import BATCH, TIMESTEPS, Inputs, source
from cpu.subjects import THREADS, Denoise, Subject, Task, bound

CALIBRATION_CALLS = 4


def eager(task: Task, dtype: torch.dtype, layout: torch.memory_format) -> Denoise:
    return bound(_load(task, dtype, layout), task, dtype, layout)


def eager_fp32(task: Task) -> Denoise:
    return eager(task, torch.float32, torch.contiguous_format)


def eager_fp32_channels_last(task: Task) -> Denoise:
    return eager(task, torch.float32, torch.channels_last)


def eager_bf16(task: Task) -> Denoise:
    return eager(task, torch.bfloat16, torch.channels_last)


def compiled_bf16(task: Task) -> Denoise:
    denoiser = _load(task, torch.bfloat16, torch.channels_last)
    return bound(_compiled(denoiser), task, torch.bfloat16, torch.channels_last)


def torchao(task: Task) -> Denoise:
    """Linear layers in int8, activations quantized per token while running; convolutions stay bfloat16."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    denoiser = _load(task, torch.bfloat16, torch.channels_last, quantization_config=config)
    return bound(denoiser, task, torch.bfloat16, torch.channels_last)


def torchao_compiled(task: Task) -> Denoise:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    denoiser = _load(task, torch.bfloat16, torch.channels_last, quantization_config=config)
    compiled = _compiled(denoiser, keep_weights=True)  # inductor cannot erase tensors of torchao's own class
    return bound(compiled, task, torch.bfloat16, torch.channels_last)


def quanto_weights(task: Task) -> Denoise:
    from optimum.quanto import freeze, qint8, quantize

    denoiser = _load(task, torch.bfloat16, torch.channels_last)
    quantize(denoiser, weights=qint8)
    freeze(denoiser)
    return bound(denoiser, task, torch.bfloat16, torch.channels_last)


def quanto_activations(task: Task) -> Denoise:
    """Weights and activations, static ranges from a few calls: its own recipe."""
    from optimum.quanto import Calibration, freeze, qint8, quantize

    denoiser = _load(task, torch.bfloat16, torch.channels_last)
    quantize(denoiser, weights=qint8, activations=qint8)
    denoise = bound(denoiser, task, torch.bfloat16, torch.channels_last)
    with Calibration():
        for latents, timestep in _calibration(task.inputs):
            denoise(latents, timestep)
    freeze(denoiser)
    return denoise


def sdnq_linear(task: Task) -> Denoise:
    """int8 matrix products in Linear layers; compiles its own kernels, and takes OpenVINO's matrix product."""
    return _sdnq(task, quant_conv=False, use_quantized_matmul_conv=False)


def sdnq_convolution(task: Task) -> Denoise:
    """The same for convolutions, unfolded to matrix products."""
    return _sdnq(task, quant_conv=True, use_quantized_matmul_conv=True)


def _sdnq(task: Task, **convolutions: bool) -> Denoise:
    from sdnq import SDNQConfig

    config = SDNQConfig(weights_dtype="int8", use_quantized_matmul=True, **convolutions)
    denoiser = _load(task, torch.bfloat16, torch.channels_last, quantization_config=config)
    return bound(denoiser, task, torch.bfloat16, torch.channels_last)


def openvino_convert(task: Task) -> None:
    """The model in OpenVINO's own format, weights stored in half precision as its converter does.

    Height and width are left open; they are fixed when it is loaded, before it is compiled.
    """
    if _openvino_file(task, "float").exists():
        return
    import openvino

    denoiser = _load(task, torch.float32, torch.contiguous_format)
    inputs = task.inputs
    names = ["sample", "timestep", *_flat(inputs.conditioning)]
    example = (inputs.latents, torch.tensor(float(TIMESTEPS[0])), *_flat(inputs.conditioning).values())
    shapes = [openvino.PartialShape([BATCH, inputs.latents.shape[1], -1, -1]), *(tuple(t.shape) for t in example[1:])]
    converted = openvino.convert_model(_Positional(denoiser), example_input=example, input=shapes)
    for port, name in zip(converted.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(converted, _openvino_file(task, "float"))


def openvino_quantize(task: Task) -> None:
    """Post-training quantization as NNCF's documentation does it for diffusion models: one static range per layer."""
    if _openvino_file(task, "int8").exists():
        return
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

    openvino_convert(task)
    inputs = task.inputs
    fixed = {name: tensor.numpy() for name, tensor in _flat(inputs.conditioning).items()}
    calls = [
        {"sample": latents.numpy(), "timestep": torch.tensor(timestep).numpy(), **fixed}
        for latents, timestep in _calibration(inputs)
    ]
    quantized = nncf.quantize(
        openvino.Core().read_model(_openvino_file(task, "float")),
        nncf.Dataset(calls),
        subset_size=len(calls),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    openvino.save_model(quantized, _openvino_file(task, "int8"))


def openvino_bf16(task: Task) -> Denoise:
    return _openvino(task, "float")


def openvino_int8(task: Task) -> Denoise:
    """What is not quantized runs in bfloat16."""
    return _openvino(task, "int8")


def _openvino(task: Task, kind: str) -> Denoise:
    import openvino

    core = openvino.Core()
    model = core.read_model(_openvino_file(task, kind))
    model.reshape({"sample": tuple(task.inputs.latents.shape)})
    compiled = core.compile_model(
        model,
        "CPU",
        {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS},
    )
    request = compiled.create_infer_request()
    fixed = {name: tensor.numpy() for name, tensor in _flat(task.inputs.conditioning).items()}

    def denoise(latents: Tensor, timestep: float) -> Tensor:
        now = torch.tensor(timestep).numpy()
        request.infer({"sample": latents.numpy(), "timestep": now, **fixed}, share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data)

    return denoise


class _Positional(nn.Module):
    """Takes latents, timestep, text and, of SDXL, pooled text and sizes; the converter traces positions."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *added: Tensor) -> Tensor:
        extra = {"added_cond_kwargs": dict(zip(("text_embeds", "time_ids"), added, strict=True))} if added else {}
        prediction: Tensor = self.denoiser(sample, timestep, text, return_dict=False, **extra)[0]
        return prediction


def _openvino_file(task: Task, kind: str) -> Path:
    folder = task.folder("openvino")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{kind}.xml"


def _flat(conditioning: dict[str, Any]) -> dict[str, Tensor]:
    return {"text": conditioning["encoder_hidden_states"], **conditioning.get("added_cond_kwargs", {})}


def _calibration(inputs: Inputs) -> Iterator[tuple[Tensor, float]]:
    """A few latents over the timesteps."""
    generator = torch.Generator().manual_seed(1)
    for timestep in TIMESTEPS[:: len(TIMESTEPS) // CALIBRATION_CALLS][:CALIBRATION_CALLS]:
        yield torch.randn(inputs.latents.shape, generator=generator), float(timestep)


def _load(task: Task, dtype: torch.dtype, layout: torch.memory_format, **how: Any) -> Any:
    folder = source(task.model, dtype, task.scratch)
    denoiser = UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype, **how)
    return denoiser.eval().to(memory_format=layout)


def _compiled(denoiser: nn.Module, *, keep_weights: bool = False) -> Any:
    """Weights become constants that inductor packs for oneDNN; the originals are freed unless they must be kept."""
    from torch._inductor import config

    config.freezing = True
    config.freezing_discard_parameters = not keep_weights
    return torch.compile(denoiser, dynamic=False)


PEERS = (
    Subject("eager fp32", eager_fp32),
    Subject("eager fp32 channels-last", eager_fp32_channels_last),
    Subject("eager bf16", eager_bf16),
    Subject("torch.compile bf16", compiled_bf16),
    Subject("torchao int8", torchao),
    Subject("torchao int8 compiled", torchao_compiled),
    Subject("quanto int8 weights", quanto_weights),
    Subject("quanto int8", quanto_activations),
    Subject("SDNQ int8 linear", sdnq_linear),
    Subject("SDNQ int8", sdnq_convolution),
    Subject("OpenVINO bf16", openvino_bf16, prepare=openvino_convert),
    Subject("OpenVINO int8 NNCF", openvino_int8, prepare=openvino_quantize),
)
