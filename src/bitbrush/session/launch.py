"""Environment variables by which torchrun numbers processes; free of torch, so that they are checked early."""

import os
from collections.abc import Mapping


def launched_ranks(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Reads the number of this process and of all processes, 0 and 1 for a process started alone.

    Raises:
        ValueError: A variable is no number, out of range, or missing where there are several processes.
    """
    world = _number(environment, "WORLD_SIZE", 1, low=1, high=1 << 20)
    rank = _number(environment, "RANK", 0, low=0, high=world - 1)
    _number(environment, "LOCAL_WORLD_SIZE", 1, low=1, high=world)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if world > 1 and missing:
        raise ValueError(
            f"WORLD_SIZE is {world}, but the environment has no {missing[0]}; start processes with torchrun, or unset "
            "WORLD_SIZE"
        )
    if world > 1:
        _number(environment, "MASTER_PORT", 0, low=0, high=65535)
    return rank, world


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Reads the number of this process among those of its machine, 0 for a process started alone.

    Raises:
        ValueError: The variable is no number, or out of range.
    """
    here = _number(environment, "LOCAL_WORLD_SIZE", 1, low=1, high=1 << 20)
    return _number(environment, "LOCAL_RANK", 0, low=0, high=here - 1)


def _number(environment: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and low <= int(text) <= high):
        raise ValueError(
            f"the environment variable {name} is {text!r}; it must be a whole number from {low} to {high}, as torchrun "
            "sets it: unset it to start one process"
        )
    return int(text)
