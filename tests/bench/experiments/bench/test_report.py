"""The benchmark's report: one file that holds all it shows, worst pairs beside usual ones."""

import pytest
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from bitbrush.cli import app
from tests.bench.pages.document import Document


@pytest.fixture(scope="module")
def report(_one_tiny_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    _one_tiny_pipe.save_pretrained(folder / "tiny")
    (folder / "animals.txt").write_text("a red cat\na dog <b>& co</b>\nan owl\n")
    (folder / "gone").mkdir()
    (folder / "gone" / "model_index.json").write_text("{}", encoding="utf-8")
    options = ["--steps", "2", "--num-images", "3", "--clip", "emoji-clip", "--latents", "3"]
    command = ["bench", str(folder / "tiny"), f"same={folder / 'tiny'}", f"gone={folder / 'gone'}"]
    done = CliRunner().invoke(
        app, [*command, "-o", str(folder / "bench"), "--prompts", str(folder / "animals.txt"), *options]
    )
    assert done.exit_code == 1, done.output  # one candidate is damaged
    return (folder / "bench" / "report.html").read_text(encoding="utf-8")


def test_holds_all_it_shows(report: str) -> None:
    document = Document(report)
    addresses = [
        value for _, attributes in document.tags for name in ("src", "href") if (value := attributes.get(name))
    ]
    assert len(addresses) == 2 * 3 * 2  # three usual and three worst pairs
    assert all(address.startswith("data:image/") for address in addresses)
    assert "default-src 'none'" in report
    assert "a dog &lt;b&gt;&amp; co&lt;/b&gt;" in report
    assert "<b>& co</b>" not in report
    assert "same is not graded, for the images are too few to tell; gone is not measured." in document.text


def test_shows_worst_pairs_beside_usual_ones_and_one_plot_of_all_sets(report: str) -> None:
    document = Document(report)
    assert document.text.count("worst of same") == 3
    usual, worst = (document.text.index(heading) for heading in ("Usual pairs", "Worst pairs"))
    assert usual < worst < document.text.index("Quality against size") < document.text.index("All figures")
    assert "calibration used other prompts of this style" in document.text
    assert report.count("PSNR (dB) to full precision</text>") == 1  # axis titles once
