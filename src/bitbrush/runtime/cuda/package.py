"""Checks of the kernels' requirements: a GPU, torch built for CUDA, and Triton, an optional dependency."""

import importlib.metadata
import importlib.util
import os

import torch
from packaging.version import Version

from bitbrush.runtime.interface import RuntimeUnavailable

OLDEST = (8, 0)
"""Oldest compute capability with bfloat16 and with matrix units that Triton multiplies bytes on (Ampere)."""

SLOW_BYTES = frozenset({(10, 3)})
"""Compute capabilities that multiply bytes more slowly than fp16: B300, 150 against 2,250 tera-operations a second."""

OLDEST_TRITON = Version("3.6")
"""Oldest Triton version, equal to that of the extra ``cuda``."""

_INSTALL = "pip install 'bitbrush[cuda]'"


def has_gpu() -> bool:
    """Whether torch sees an NVIDIA GPU."""
    return torch.cuda.is_available()


def require_gpu() -> None:
    """Checks that the kernels run on this machine.

    Raises:
        RuntimeUnavailable: Something is missing; the message names it and how to install it.
    """
    if torch.version.cuda is None:
        raise RuntimeUnavailable(
            f"the cuda runtime needs torch built for CUDA, and torch {torch.__version__} is not: install the build for "
            f"your driver from PyTorch's own index, and the kernels' compiler by {_INSTALL}"
        )
    if not has_gpu():
        raise RuntimeUnavailable(
            f"the cuda runtime needs an NVIDIA card, and torch {torch.__version__} (CUDA {torch.version.cuda}) sees "
            "none; look at `nvidia-smi`, CUDA_VISIBLE_DEVICES and the driver"
        )
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST:
        raise RuntimeUnavailable(
            f"{torch.cuda.get_device_name()} has compute capability {_dotted(capability)}; the cuda runtime needs "
            f"{_dotted(OLDEST)} (Ampere) or newer: use --runtime onednn or reference"
        )
    require_triton()
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeUnavailable("TRITON_INTERPRET is 1: Triton would emulate its kernels; unset it to run on the card")


def require_fast_bytes() -> None:
    """Checks that the GPU multiplies bytes faster than half precision.

    Raises:
        RuntimeUnavailable: It does not, so that ``auto`` leaves it alone.
    """
    if torch.cuda.get_device_capability() in SLOW_BYTES:
        raise RuntimeUnavailable(
            f"{torch.cuda.get_device_name()} multiplies bytes at a fifteenth of fp16's rate, so half precision is "
            "faster on it; --runtime cuda runs integers anyway"
        )


def require_triton() -> None:
    """Checks the version of Triton without an import.

    Raises:
        RuntimeUnavailable: The package is missing or too old.
    """
    if importlib.util.find_spec("triton") is None:
        raise RuntimeUnavailable(
            f"the cuda runtime needs the package triton, which is not installed: {_INSTALL} (Linux)"
        )
    version = triton_version()
    if version is not None and version < OLDEST_TRITON:
        raise RuntimeUnavailable(
            f"the cuda runtime needs triton {OLDEST_TRITON} or newer, and {version} is installed; it comes with torch, "
            f"of which {torch.__version__} is too old: upgrade torch"
        )


def triton_version() -> Version | None:
    """Version of the distribution that provides Triton; None if no metadata exists, as in a source build."""
    names = importlib.metadata.packages_distributions().get("triton", [])
    return Version(importlib.metadata.version(names[0])) if names else None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
