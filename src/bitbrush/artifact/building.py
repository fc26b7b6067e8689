"""Construction of a library's objects from an artifact's configurations, within the size of its tensors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from bitbrush.artifact.documents import ArtifactError
from bitbrush.artifact.folder import WEIGHT_SUFFIX
from bitbrush.artifact.tensor_file import header_bytes

ELEMENTS_PER_BYTE = 64
PARAMETERS_PER_TENSOR, FURTHER_PARAMETERS = 16, 1000
BYTES_PER_ENTRY = 60
"""Bounds on what constructors register: libraries register a parameter a few times while they load it."""
UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""Errors of constructors that get values which pass their types and do not fit each other."""


@contextmanager
def building(place: Path) -> Iterator[None]:
    """Bounds what the code inside constructs from the files in ``place``, and names ``place`` in its errors.

    The code inside is another library's: constructors that check few of their arguments. tokenizers raises plain
    ``Exception``. A missing package stays an ImportError.

    Args:
        place: Folder of the artifact or a component.

    Raises:
        ArtifactError: The construction fails, or takes more parameters than the files have.
    """
    try:
        with _bounded(place):
            yield
    except ArtifactError:
        raise
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, UNFIT):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise ArtifactError(f"{place} does not hold what its configuration says ({reason}); quantize again") from error


@contextmanager
def _bounded(place: Path) -> Iterator[None]:
    files = sorted(place.rglob(f"*{WEIGHT_SUFFIX}"))
    elements = ELEMENTS_PER_BYTE * sum(path.stat().st_size for path in files)
    parameters = FURTHER_PARAMETERS + PARAMETERS_PER_TENSOR * sum(map(header_bytes, files)) // BYTES_PER_ENTRY
    own = threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal elements, parameters
        if parameter is None or threading.get_ident() != own:
            return
        elements, parameters = elements - parameter.numel(), parameters - 1
        if min(elements, parameters) < 0:
            raise ArtifactError(
                f"{place} configures a larger network than its files hold ({type(module).__name__}.{name} of shape "
                f"{tuple(parameter.shape)}); quantize again"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
