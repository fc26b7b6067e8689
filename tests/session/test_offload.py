"""Tensors put away are the same tensors, without the memory."""

import gc
from pathlib import Path

import pytest
import torch

from bitbrush.session import offload as offloading
from bitbrush.session.offload import (
    CPU,
    IN_MEMORY,
    SMALLEST,
    Offload,
    OffloadBudget,
    TensorTracker,
    is_offloaded,
    release,
)

LARGE = 200


@pytest.fixture
def offload(tmp_path: Path) -> Offload:
    return Offload(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_elements_stay_and_no_file_has_a_name(offload: Offload, dtype: torch.dtype) -> None:
    x = torch.arange(LARGE * LARGE).view(LARGE, LARGE).to(dtype)
    expected = x.clone()
    assert offload.put({"x": [x], "else": 3})["x"][0] is x
    assert is_offloaded(x)
    release(x)
    assert torch.equal(x, expected)
    x += 1
    release(x)
    assert torch.equal(x, expected + 1)  # what is written is kept, too
    assert offload.folder is not None
    assert list(offload.folder.iterdir()) == []


def test_views_stay_views(offload: Offload) -> None:
    x = torch.randn(LARGE, LARGE)
    row, turned = x[3], x.t()
    offload.put([turned, x, row, row])
    x[3, 5] = 7
    assert row[5] == turned[5, 3] == 7
    assert turned.stride() == (1, LARGE)


def test_small_tensors_and_those_without_a_folder_stay_in_memory(offload: Offload) -> None:
    small, large = torch.zeros(10), torch.zeros(LARGE, LARGE)
    offload.put(small)
    IN_MEMORY.put(large)
    release(large)
    assert not is_offloaded(small)
    assert not is_offloaded(large)


def test_what_was_made_is_followed_and_put_away(offload: Offload) -> None:
    given = torch.ones(LARGE, LARGE)
    following = TensorTracker(offload, CPU)
    with torch.no_grad(), following:
        following.follow((given, "mode"))
        made = given * 2
        halves = made.chunk(2)
        dropped = made + 1
        del dropped
    following.put()
    assert all(is_offloaded(one) for one in (given, made, *halves))
    assert halves[1].data_ptr() == made[LARGE // 2 :].data_ptr()
    assert torch.equal(made, torch.full((LARGE, LARGE), 2.0))


def test_a_full_disk_is_an_error(offload: Offload, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(offloading.os, "fdopen", full)
    x = torch.ones(LARGE, LARGE)
    with pytest.raises(OSError, match=r"cannot be written: the disk has .* left of the 157 KiB that it takes"):
        offload.put(x)
    assert not is_offloaded(x)
    assert torch.equal(x, torch.ones(LARGE, LARGE))
    assert offload.folder is not None
    assert list(offload.folder.iterdir()) == []


def test_mappings_end_with_their_tensors(offload: Offload) -> None:
    x = offload.put(torch.ones(LARGE, LARGE))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what is mapped")
    assert ".offload" in maps.read_text(encoding="utf-8")
    del x
    gc.collect()
    assert ".offload" not in maps.read_text(encoding="utf-8")


def test_what_there_is_room_for_stays_in_memory_until_it_is_gone(tmp_path: Path) -> None:
    offload = Offload(tmp_path, OffloadBudget(3 * SMALLEST))
    first, second, third = (torch.zeros(2 * SMALLEST, dtype=torch.uint8) for _ in range(3))
    offload.put([first, first[1:]])
    offload.put([first, second])
    assert [is_offloaded(one) for one in (first, second)] == [False, True]
    del first
    offload.put([second, third])
    assert [is_offloaded(one) for one in (second, third)] == [True, False]
