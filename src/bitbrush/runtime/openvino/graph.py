"""One compiled graph of a denoiser: for inputs of certain shapes, and layers of certain forms."""

import warnings
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
    """The denoiser as a function of tensors alone: its arguments, and all layers' rows, each number a tensor (1,).

    An input of the graph each, because the step's scales must stay float32: OpenVINO would round to bfloat16 what it
    takes out of one table.
    """

    def __init__(self, denoiser: nn.Module, forward: Callable[..., Any], step: Step, call: Call) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._forward, self._step, self._call = forward, step, call

    def forward(self, tensors: Sequence[Tensor], rows: Sequence[Sequence[Tensor]]) -> Any:
        self._step.rows = rows
        return self._forward(**self._call.arguments(tensors))


@dataclass(frozen=True)
class Graph:
    """A compiled graph. ``floating``: the names of integer layers that OpenVINO did not multiply in integers.

    ``table`` (layers, 3) float32: the memory that the graph reads the layers' rows from.
    """

    forms: tuple[Form, ...]
    signature: tuple[Any, ...]
    result: pytree.TreeSpec
    request: Any
    table: Tensor
    floating: tuple[str, ...]

    def run(self, rows: Sequence[Row], call: Call) -> Any:
        """What the denoiser returns, in float32."""
        self.table.copy_(torch.tensor(rows))
        arrays = {i: x.numpy() for i, x in enumerate(call.tensors)}
        outputs = self.request.infer(arrays, share_inputs=True, share_outputs=True)
        leaves = [torch.from_numpy(outputs[i].copy()) for i in range(len(outputs))]
        return pytree.tree_unflatten(leaves, self.result)


def compile_graph(
    openvino: Any, traced: Traced, forms: tuple[Form, ...], call: Call, config: Mapping[str, Any]
) -> Graph:
    """Exports the denoiser without computing anything, hands it to OpenVINO and looks at what became of it.

    Sizes are constants of the graph: kernels are chosen, and weights laid out, when it is compiled.
    """
    table = torch.ones(len(forms), 3)
    numbers = table.flatten().split(1)
    rows = [numbers[i : i + 3] for i in range(0, len(numbers), 3)]
    with torch.no_grad():
        exported = torch.export.export(traced, (call.tensors, rows), strict=False)
    with warnings.catch_warnings():  # OpenVINO's converter uses what torch deprecates
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        model = openvino.convert_model(exported)
    model.reshape({i: list(x.shape) for i, x in enumerate((*call.tensors, *numbers))})
    expected = _name_products(model, traced.denoiser)
    compiled = openvino.Core().compile_model(model, "CPU", dict(config))
    floating = tuple(sorted(expected - set(_integer_products(compiled))))
    request = compiled.create_infer_request()
    for i, number in enumerate(numbers, start=len(call.tensors)):
        request.set_input_tensor(i, openvino.Tensor(number.numpy(), shared_memory=True))
    return Graph(forms, call.signature, exported.call_spec.out_spec, request, table, floating)


def _name_products(model: Any, denoiser: nn.Module) -> set[str]:
    """Names every product, and its weights, after the layer; the names given, two for a layer of wide inputs.

    A layer that the denoiser never calls has none.
    """
    layers = {
        module.weight.data_ptr(): module.name for module in denoiser.modules() if isinstance(module, IntegerLayer)
    }
    given: set[str] = set()
    for operation in model.get_ordered_ops():
        constant = _constant(operation.input_value(1).get_node()) if operation.get_type_name() in _PRODUCTS else None
        # OpenVINO's constants share torch's memory.
        name = None if constant is None else layers.get(int(constant.data.ctypes.data))
        if constant is not None and name is not None:
            name = name + LOW if name in given else name
            operation.set_friendly_name(name)
            constant.set_friendly_name(f"{name}/weight")
            given.add(name)
    return given


def _constant(node: Any) -> Any:
    """The constant that ``node`` is computed of by its first inputs; None without one."""
    while node.get_type_name() != "Constant":
        if not node.inputs():
            return None
        node = node.input_value(0).get_node()
    return node


def _integer_products(compiled: Any) -> Iterator[str]:
    """Names of the products that are computed in integers: the kernel's own, or where it lost it, its weights'."""
    for operation in compiled.get_runtime_model().get_ordered_ops():
        if _fact(operation, "layerType") in _KERNELS and _fact(operation, "runtimePrecision") in _INTEGERS:
            weight = operation.input_value(1).get_node().get_friendly_name()
            for name in (*_fact(operation, "originalLayersNames").split(","), weight):
                yield name.partition("/")[0]  # OpenVINO appends what it moved there: "/DequantizationMultiply"


def _fact(operation: Any, name: str) -> str:
    fact = operation.get_rt_info()[name]
    return str(getattr(fact, "value", fact))
