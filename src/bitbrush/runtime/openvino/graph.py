"""One compiled graph of a denoiser: for inputs of certain shapes, and layers of certain forms."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitbrush.runtime.openvino.layers import Form, IntegerLayer, Row, Step

LOW = " (low bits)"
_PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
_KERNELS = ("Convolution", "FullyConnected", "MatMul")
_INTEGERS = ("i8", "u8")
_DEQUANTIZATION = "/Dequantization"  # what OpenVINO appends to the name of a product when it moves its scales


@dataclass(frozen=True)
class Call:
    """The arguments of a denoiser call: its tensors, and where they stand between other values."""

    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> "Call":
        leaves, spec = pytree.tree_flatten(arguments)
        return cls(tuple(_plain(leaf) for leaf in leaves), spec)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Tensor))

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for calls that one graph can answer: shapes and types of the tensors, and all other values."""
        return self.spec, tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in self.leaves)

    def arguments(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """With other tensors in the places of its own."""
        fresh = iter(tensors)
        leaves = [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return dict(pytree.tree_unflatten(leaves, self.spec))


def _plain(leaf: Any) -> Any:
    """As OpenVINO takes it: float32 instead of other floating-point types, in the order of its indices."""
    if not isinstance(leaf, Tensor):
        return leaf
    return (leaf.float() if leaf.is_floating_point() else leaf).detach().contiguous()


class Traced(nn.Module):
    """The denoiser as a function of tensors alone: the table of all layers' rows (3 layers,), and its arguments."""

    def __init__(self, denoiser: nn.Module, forward: Callable[..., Any], step: Step, call: Call) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._forward, self._step, self._call = forward, step, call

    def forward(self, table: Tensor, *tensors: Tensor) -> Any:
        values = table.split(1)
        self._step.rows = [values[i : i + 3] for i in range(0, len(values), 3)]
        return self._forward(**self._call.arguments(tensors))


@dataclass(frozen=True)
class Graph:
    """A compiled graph. ``floating``: the names of integer layers that OpenVINO did not multiply in integers."""

    forms: tuple[Form, ...]
    signature: tuple[Any, ...]
    result: pytree.TreeSpec
    request: Any
    floating: tuple[str, ...]

    def run(self, rows: Sequence[Row], call: Call) -> Any:
        """What the denoiser returns, in float32."""
        table = torch.tensor(rows, dtype=torch.float32).flatten()
        arrays = [x.numpy() for x in (table, *call.tensors)]
        outputs = self.request.infer(arrays, share_inputs=True, share_outputs=True)
        leaves = [torch.from_numpy(outputs[i].copy()) for i in range(len(outputs))]
        return pytree.tree_unflatten(leaves, self.result)


def compile_graph(
    openvino: Any, traced: Traced, forms: tuple[Form, ...], call: Call, config: Mapping[str, Any]
) -> Graph:
    """Exports the denoiser without computing anything, hands it to OpenVINO and looks at what became of it.

    Sizes are constants of the graph: kernels are chosen, and weights laid out, when it is compiled.
    """
    inputs = torch.zeros(3 * len(forms)), *call.tensors
    with torch.no_grad():
        exported = torch.export.export(traced, inputs, strict=False)
    model = openvino.convert_model(exported)
    model.reshape({i: list(x.shape) for i, x in enumerate(inputs)})
    expected = _name_products(model, traced.denoiser)
    compiled = openvino.Core().compile_model(model, "CPU", dict(config))
    floating = tuple(sorted(expected - set(_integer_products(compiled))))
    return Graph(forms, call.signature, exported.call_spec.out_spec, compiled.create_infer_request(), floating)


def _name_products(model: Any, denoiser: nn.Module) -> set[str]:
    """Names every product after the layer whose weights it reads; the names given, two for a layer of wide inputs.

    A layer that the denoiser never calls has none.
    """
    layers = {
        module.weight.data_ptr(): module.name for module in denoiser.modules() if isinstance(module, IntegerLayer)
    }
    given: set[str] = set()
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _PRODUCTS:
            name = layers.get(_weight_address(operation))
            if name is not None:
                name = name + LOW if name in given else name
                operation.set_friendly_name(name)
                given.add(name)
    return given


def _weight_address(operation: Any) -> int:
    """Where the constant lies that the second input is computed of, 0 without one. OpenVINO shares torch's memory."""
    node = operation.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        if not node.inputs():
            return 0
        node = node.input_value(0).get_node()
    return int(node.data.ctypes.data)


def _integer_products(compiled: Any) -> Iterator[str]:
    """Names of the products that are computed in integers."""
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: str(getattr(fact, "value", fact)) for key, fact in operation.get_rt_info().items()}
        if facts["layerType"] in _KERNELS and facts["runtimePrecision"] in _INTEGERS:
            for name in facts["originalLayersNames"].split(","):
                yield name.partition(_DEQUANTIZATION)[0]
