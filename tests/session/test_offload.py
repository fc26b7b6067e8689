"""Tensors put away are the same tensors, without the memory."""

import gc
from pathlib import Path

import pytest
import torch

from bitbrush.session import offload as spools
from bitbrush.session.offload import (
    IN_MEMORY,
    PROCESSOR,
    SMALLEST,
    Following,
    Room,
    Spool,
    is_away,
    release,
)

LARGE = 200


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_elements_stay_and_no_file_has_a_name(spool: Spool, dtype: torch.dtype) -> None:
    x = torch.arange(LARGE * LARGE).view(LARGE, LARGE).to(dtype)
    expected = x.clone()
    assert spool.put_away({"x": [x], "else": 3})["x"][0] is x
    assert is_away(x)
    release(x)
    assert torch.equal(x, expected)
    x += 1
    release(x)
    assert torch.equal(x, expected + 1)  # what is written is kept, too
    assert spool.folder is not None
    assert list(spool.folder.iterdir()) == []


def test_views_stay_views(spool: Spool) -> None:
    x = torch.randn(LARGE, LARGE)
    row, turned = x[3], x.t()
    spool.put_away([turned, x, row, row])
    x[3, 5] = 7
    assert row[5] == turned[5, 3] == 7
    assert turned.stride() == (1, LARGE)


def test_small_tensors_and_those_without_a_folder_stay_in_memory(spool: Spool) -> None:
    small, large = torch.zeros(10), torch.zeros(LARGE, LARGE)
    spool.put_away(small)
    IN_MEMORY.put_away(large)
    release(large)
    assert not is_away(small)
    assert not is_away(large)


def test_what_was_made_is_followed_and_put_away(spool: Spool) -> None:
    given = torch.ones(LARGE, LARGE)
    following = Following(spool, PROCESSOR)
    with torch.no_grad(), following:
        following.follow((given, "mode"))
        made = given * 2
        halves = made.chunk(2)
        dropped = made + 1
        del dropped
    following.put_away()
    assert all(is_away(one) for one in (given, made, *halves))
    assert halves[1].data_ptr() == made[LARGE // 2 :].data_ptr()
    assert torch.equal(made, torch.full((LARGE, LARGE), 2.0))


def test_a_full_disk_is_an_error(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spools.os, "fdopen", full)
    x = torch.ones(LARGE, LARGE)
    with pytest.raises(OSError, match=r"cannot be written: the disk has .* left of the 157 KiB that it takes"):
        spool.put_away(x)
    assert not is_away(x)
    assert torch.equal(x, torch.ones(LARGE, LARGE))
    assert spool.folder is not None
    assert list(spool.folder.iterdir()) == []


def test_mappings_end_with_their_tensors(spool: Spool) -> None:
    x = spool.put_away(torch.ones(LARGE, LARGE))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what is mapped")
    assert ".spool" in maps.read_text(encoding="utf-8")
    del x
    gc.collect()
    assert ".spool" not in maps.read_text(encoding="utf-8")


def test_what_there_is_room_for_stays_in_memory_until_it_is_gone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Room(3 * SMALLEST))
    first, second, third = (torch.zeros(2 * SMALLEST, dtype=torch.uint8) for _ in range(3))
    spool.put_away([first, first[1:]])
    spool.put_away([first, second])
    assert [is_away(one) for one in (first, second)] == [False, True]
    del first
    spool.put_away([second, third])
    assert [is_away(one) for one in (second, third)] == [True, False]
