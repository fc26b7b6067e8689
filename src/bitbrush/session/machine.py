"""Resources of this machine: free memory and the available GPUs."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from bitbrush.session.launch import local_rank

CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Returns the bytes that can still be allocated, free swap space included.

    The limits of control groups count, too, as a container may get less than the machine has. psutil ignores them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # psutil warns of other figures, which some sandboxes hide
        memory = psutil.virtual_memory().available + psutil.swap_memory().free
    return min((int(memory), *_free_in_groups()))


def _free_in_groups() -> Iterator[int]:
    """Yields the bytes left in every limited control group of this process (versions 1 and 2).

    File pages count as free, because the system can reclaim them.
    """
    lines = CGROUP.read_text(encoding="utf-8").splitlines() if CGROUP.exists() else []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if not controllers:
            root, limit, usage, files = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            files = "total_inactive_file"
        else:
            continue
        leaf = root / group.lstrip("/")
        for folder in (leaf, *leaf.parents):
            if folder.is_relative_to(root) and (folder / limit).is_file():
                most = (folder / limit).read_text(encoding="ascii").strip()
                if most != "max":
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    yield max(0, int(most) - int((folder / usage).read_text()) + int(stat.get(files, 0)))


def available_on_gpu(device: torch.device) -> int:
    """Returns the free bytes of a GPU, including memory that torch has reserved but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def find_device(name: str) -> torch.device:
    """Finds a device by name: ``cpu``, ``cuda``, or one GPU of several, ``cuda:1``.

    Of the processes that torchrun started on this machine, each gets a GPU of its own by ``cuda``.

    Raises:
        ValueError: The name is none of these, or the device is missing; the message says why.
    """
    kind, _, index = name.partition(":")
    if name == "cpu":
        return torch.device(name)
    if kind != "cuda" or not (index.isdecimal() or name == "cuda"):
        raise ValueError(f"device is {name!r}; choose cpu, cuda, or one GPU of several: cuda:1")
    if torch.version.cuda is None:
        raise ValueError(
            f"device is {name}, but torch {torch.__version__} is not built for CUDA; install the build for your driver "
            "from PyTorch's own index, or leave --device at cpu"
        )
    number, gpus = int(index or local_rank()), torch.cuda.device_count()
    if number >= gpus:
        process = "" if index else f" for process {number} of this machine, counted from 0"
        raise ValueError(
            f"device is {name}{process}, but torch sees {gpus} GPUs; start as many processes at most, and look at "
            "`nvidia-smi` and CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", number)
