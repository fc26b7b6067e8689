"""Prompts as they are published: COCO's JSON, tables, text."""

import json
import sys
from pathlib import Path

import pytest

from bitbrush.sources.prompt_files import read_prompt_file
from bitbrush.sources.prompts import Domain, bench_sets


def test_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffa cat\n\n  a dog / 100 %  \n", encoding="utf-8")
    assert read_prompt_file(str(tmp_path / "p.txt")) == ("a cat", "a dog / 100 %")


def test_coco_gives_every_images_first_caption(tmp_path: Path) -> None:
    captions = [(9, 30, "second of 9"), (7, 12, "of 7\n"), (9, 3, "A  first\nof 9 ")]
    annotations = [{"image_id": image, "id": own, "caption": text} for image, own, text in captions]
    (tmp_path / "captions_val2017.json").write_text(json.dumps({"info": {}, "annotations": annotations}))
    assert read_prompt_file(str(tmp_path / "captions_val2017.json")) == ("of 7", "A first of 9")


@pytest.mark.parametrize("content", ['{"images": []}', "[1, 2]", "no json", '{"annotations": [{"id": 1}]}'])
def test_other_json_is_no_coco(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json.* is not COCO's captions"):
        read_prompt_file(str(tmp_path / "x.json"))


def test_csv_has_its_prompts_in_a_column(tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text('id,Prompt\n1,"a castle, ""trending""\non artstation"\n2,a fox\n3,\n')
    assert read_prompt_file(str(tmp_path / "eval.csv")) == ('a castle, "trending" on artstation', "a fox")
    (tmp_path / "bad.csv").write_text("id,name\n1,x\n")
    with pytest.raises(ValueError, match="has columns id, name; one called prompt or prompts or caption or text"):
        read_prompt_file(str(tmp_path / "bad.csv"))


def test_parquet_without_its_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "eval.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'bitbrush\[parquet\]'"):
        read_prompt_file(str(tmp_path / "eval.parquet"))


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"Prompt": ["a castle", None, "a fox"]}), tmp_path / "eval.parquet")
    assert read_prompt_file(str(tmp_path / "eval.parquet")) == ("a castle", "a fox")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        read_prompt_file(str(tmp_path / "none.csv"))
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"empty\.txt.*the file is empty"):
        read_prompt_file(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_prompt_file(str(tmp_path / "latin.txt"))


def test_the_hub_needs_a_whole_address_and_a_network() -> None:
    with pytest.raises(ValueError, match="hf://datasets/OWNER/NAME/PATH"):
        read_prompt_file("hf://datasets/someone")
    with pytest.raises(ValueError, match=r"cannot be fetched from the hub.*give a local file"):
        read_prompt_file("hf://datasets/someone/prompts/eval.csv")


def test_bundled_sets_know_their_domain(tmp_path: Path) -> None:
    both = bench_sets((), (), "emoji-sd")
    assert [(one.name, one.domain, len(one.prompts)) for one in both] == [
        ("coco", Domain.CALIBRATION, 512),
        ("sdp", Domain.UNSEEN, 512),
    ]
    assert bench_sets(("sdp",), (), "emoji-sd")[0].domain is Domain.UNSEEN
    (tmp_path / "mine.txt").write_text("a cat\n")
    mine = str(tmp_path / "mine.txt")
    assert bench_sets((mine,), (), "someone/model")[0].domain is Domain.CALIBRATION
    assert bench_sets((), (mine,), "someone/model")[0].domain is Domain.UNSEEN
    with pytest.raises(ValueError, match="two prompt sets are called 'mine'"):
        bench_sets((mine,), (mine,), "someone/model")
    with pytest.raises(ValueError, match="has no prompts of its own"):
        bench_sets((), (), "someone/model")


MJHQ = {"a1": {"category": "animals", "prompt": "a fox,  red"}, "b2": {"category": "food", "prompt": "bread"}}


def test_mjhq_and_sdci_and_drawbench_are_read_as_published(tmp_path: Path) -> None:
    (tmp_path / "meta_data.json").write_text(json.dumps(MJHQ))
    (tmp_path / "sDCI.yaml").write_text("sa_1: a street\n  at night\nsa_2: 'a: b'\n")
    (tmp_path / "drawbench.csv").write_text("Prompts,Category\na cat,Colors\n")
    assert read_prompt_file(str(tmp_path / "meta_data.json")) == ("a fox, red", "bread")
    assert read_prompt_file(str(tmp_path / "sDCI.yaml")) == ("a street at night", "a: b")
    assert read_prompt_file(str(tmp_path / "drawbench.csv")) == ("a cat",)


@pytest.mark.parametrize(("content", "message"), [("a: [", "is no YAML"), ("- a\n- b\n", "is no table of prompts")])
def test_other_yaml_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompt_file(str(tmp_path / "x.yaml"))


def test_standard_sets_are_found_by_name_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITBRUSH_PROMPTS", raising=False)
    with pytest.raises(ValueError, match=r"set BITBRUSH_PROMPTS to the folder with meta_data\.json"):
        read_prompt_file("mjhq-30k")
    monkeypatch.setenv("BITBRUSH_PROMPTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"has no captions_val2017\.json or captions_val2014\.json; put it there"):
        read_prompt_file("coco-captions")
    (tmp_path / "mjhq-30k").mkdir()
    (tmp_path / "mjhq-30k" / "meta_data.json").write_text(json.dumps(MJHQ))
    assert read_prompt_file("mjhq-30k") == ("a fox, red", "bread")
