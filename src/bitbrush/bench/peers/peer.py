"""Interface of the packages that `bench` compares with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Peer:
    """Quantization package, measured as the candidate ``NAME:SCHEME`` with its own defaults.

    Args:
        package: Name under which pip installs it.
        module: Module that it is imported by.
        schemes: Activation bits by scheme; empty where the path of a file stands in place of a scheme.
        quantize: Quantizes a float32 denoiser on its device, in place or not, and returns it. It is called with the
            denoiser and the scheme, and imports the package itself.
    """

    package: str
    module: str
    schemes: Mapping[str, int]
    quantize: Callable[[nn.Module, str], nn.Module]
