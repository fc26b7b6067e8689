"""A tiny model, an artifact of it, files that are no input, and command lines that only their meaning makes bad."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from bitbrush.cli import app
from tests.artifact.pipelines import Case, pipeline, stable_diffusion

SMALL = {
    "sample_size": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}
PROMPTS = ("a red cat", "a blue dog", "a green owl", "two yellow birds")
Options = dict[str, str]


ALL = "quantize recalibrate generate bench ablate plans sensitivity"
DEEP = "[" * 100_000
BAD_PROMPTS = (
    "missing.txt empty.txt blank.txt binary.txt nul.txt model pipe deep.json number.json columns.csv nul.csv "
    "no.parquet long.txt infinite.json"
)
RESERVED = "prompt generator num_inference_steps guidance_scale kwargs callback self no_such output_type"
BAD_LORAS = "foreign shapes ranks alpha loha integers nan empty text missing"


@dataclass(frozen=True)
class Meaning:
    """Values of an option that only its meaning makes bad; ``is_path`` for those below the root."""

    option: str
    commands: str
    values: Sequence[str]
    names: tuple[str, ...] = ()
    is_path: bool = False


MEANINGS = (
    Meaning("--prompts", "quantize compare sensitivity", BAD_PROMPTS.split(), is_path=True),
    Meaning("--prompts", "recalibrate bench ablate plans", BAD_PROMPTS.split()[:5], is_path=True),
    Meaning(
        "--pipeline-argument",
        "quantize generate",
        ("height=N", "height=0", "height=-8", "height=8.5", "height=true", "height=1000000000", "height"),
        ("height",),
    ),
    Meaning(
        "--pipeline-argument", "quantize generate", [f"{name}=1" for name in RESERVED.split()], tuple(RESERVED.split())
    ),
    Meaning("--pipeline-argument", "generate", ("latents=1", "clip_skip=x", "clip_skip=100"), ("latents", "skip")),
    Meaning("--pipeline-argument", "quantize generate", ("eta=0.5", "guidance_rescale=NaN"), ("eta", "rescale")),
    Meaning("--pipeline-argument", "quantize generate", (f"height={DEEP}", f"height={'9' * 5000}"), ("height",)),
    Meaning("--pipeline-argument", "quantize", ('cross_attention_kwargs={"a": 1}', "=1"), ("kwargs", "NAME=VALUE")),
    Meaning(
        "--relax",
        "quantize recalibrate",
        ("1.0:0.8@10", "0.5:0.5@10", "0.8:1.2@10", "-1:1@10", "nan:1@10", "0.8:1@99", "0.8:1@8", "auto:nan", "x"),
        ("relax",),
    ),
    Meaning("--exclude", "quantize", ("*", "no.such.layer", "[", ""), ("exclude",)),
    Meaning("--high-precision", "quantize", ("no.such.layer", ""), ("high_precision",)),
    Meaning("--steps", ALL, ("1001", "100000"), ("steps",)),
    Meaning("--lora", "quantize sensitivity", [f"{name}.safetensors" for name in BAD_LORAS.split()], is_path=True),
    Meaning(
        "--lora",
        "quantize bench",
        [f"foreign.safetensors@{scale}" for scale in ("nan", "inf", "1e300", "x")],
        ("LoRA",),
        True,
    ),
    Meaning(
        "-o",
        ALL,
        ("model", "artifact", "prompts.txt", "prompts.txt/below", "n" * 300, "x/" * 2500),
        ("put", "file"),
        True,
    ),
    Meaning("-o", "quantize bench", ("model/unet/deeper",), ("output",), True),
    Meaning("-o", f"{ALL} demo", ("link", "link/below", "loop/below"), ("link", "loop"), True),
    Meaning("-o", f"{ALL} demo", ("/proc/bitbrush/x",), ("/proc",)),
    Meaning("--plot", "inspect", ("link/bits.svg", "empty-folder.svg", "pipe.svg"), ("plot", "link"), True),
    Meaning("--scheduler", "quantize generate ablate", ("ddpm2", "StableDiffusionPipeline", "flow_euler", "os")),
    Meaning("--images", "quantize bench", ("missing", "prompts.txt", "empty-folder", "text-images"), is_path=True),
    Meaning(
        "--recipe", "quantize", ("missing.toml", "number.json", "deep.json", "binary.txt", "nul.txt"), is_path=True
    ),
    Meaning("--recipe", "quantize", ("unknown.toml",), ("no_such_key",), True),
    Meaning(
        "--device", "quantize recalibrate sensitivity", ("tpu", "cuda:99", "cpu:1", ""), ("device", "CUDA", "cuda")
    ),
    Meaning("--seeds", "bench", ("1,1", "1;2", "-1", str(2**64), "1,,2", ""), ("seeds",)),
    Meaning("--noise", "sensitivity", ("0", "1e9"), ("noise",)),
)


@dataclass(frozen=True)
class Folders:
    """Inputs below a folder of which nothing may change."""

    root: Path

    def path(self, name: str) -> str:
        return str(self.root / name)

    def valid(self, command: str, *, without: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Returns a command line that would work, without some of its options."""
        arguments, options = self._line(command)
        if "-o" in without or "--output" in without:
            options.pop("-o", None)
        return (
            command,
            *arguments,
            *(word for name, value in options.items() if name not in without for word in (name, value)),
        )

    def _line(self, command: str) -> tuple[tuple[str, ...], Options]:
        model, artifact, prompts = self.path("model"), self.path("artifact"), {"--prompts": self.path("prompts.txt")}
        output, few, clip = {"-o": self.path("new")}, {"--num-prompts": "2"}, {"--clip": "emoji-clip"}
        calibration = {"--calibration-prompts": self.path("others.txt")}
        recipe = {"--method": "rtn", "--steps": "2"}
        lines: dict[str, tuple[tuple[str, ...], Options]] = {
            "quantize": ((model,), {**output, **prompts, **few, **recipe}),
            "recalibrate": ((artifact,), {**output, **prompts, **few}),
            "generate": ((artifact, "a cat"), {**output, "--steps": "2"}),
            "compare": ((model, artifact), {**prompts, **few}),
            "bench": ((model, artifact), {**output, **prompts, **clip, "--num-images": "3"}),
            "ablate": (
                (model,),
                {
                    **output,
                    **prompts,
                    **calibration,
                    **few,
                    **clip,
                    "--recipes": "rtn",
                    "--num-images": "3",
                    "--steps": "2",
                },
            ),
            "plans": ((model, artifact), {**output, **prompts, **calibration, **few, "--steps": "2"}),
            "sensitivity": ((model,), {**output, **prompts, **few, **clip, "--steps": "2"}),
            "inspect": ((artifact,), {}),
            "demo": ((), output),
            "verify": ((artifact,), {}),
            "card": ((artifact,), {}),
            "doctor": ((), {}),
        }
        return lines[command]

    def meanings(self) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
        """Yields a command, an option, a bad value, and words of which the message must hold one."""
        for meaning in MEANINGS:
            for command in meaning.commands.split():
                for value in meaning.values:
                    names = meaning.names or (value.strip("@")[:40],)
                    yield command, meaning.option, self.path(value) if meaning.is_path else value, names

    def whole_lines(self) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Yields whole command lines with arguments that are bad, and words of their messages."""
        model, artifact, new = self.path("model"), self.path("artifact"), ("-o", self.path("new"))
        few = ("--prompts", self.path("prompts.txt"), "--num-images", "3", "--clip", "emoji-clip")
        missing = ("/nosuch", self.path("empty-folder"), self.path("prompts.txt"), "")
        for candidate in (*missing, "owner/no-such", "NAME=/nosuch"):
            yield ("bench", model, candidate, *new, *few), ("candidate",)
        yield ("bench", artifact, artifact, *new, *few), ("artifact",)
        for name in (*missing, "emoji-ds", artifact, "a/b/c", "\udcff/x"):
            yield ("quantize", name, *new, "--prompts", self.path("prompts.txt")), (name, "model", "artifact")
        for name in missing:
            yield ("generate", name, "a cat", *new), (name, "model")
            yield ("inspect", name), (name, "artifact")
        for prompt in ("", "  ", "\n", "a\0b", "\udcff", "x" * 20_000):
            yield ("generate", artifact, prompt, *new), ("prompt",)
        yield ("generate", artifact, "a cat", *new, "--seed", str(2**63 - 1), "--num-images", "2"), ("seed",)
        yield ("inspect", artifact, "--layer", "no.such"), ("no.such",)
        yield ("inspect", artifact, "--plot", self.path("artifact/plot.svg")), ("plot",)
        yield ("inspect", artifact, "--plot", self.path("plot.exe")), ("plot", ".exe")
        for plans in ("x", "steps,x", ""):
            yield ("bench", model, artifact, *new, "--plans", plans), ("plans",)
        for recipes in ("nosuch", "rtn,rtn", ",", ""):
            yield ("ablate", model, *new, "--recipes", recipes, *few), ("nosuch", "rtn", "recipes")
        for bits in ("W9A8", "W4", "", "W4A8;", "W4A99"):
            yield ("ablate", model, *new, "--recipes", "rtn", "--bits", bits, *few), ("bits", "weights", "activations")


def make_folders(root: Path) -> Folders:
    """Makes the model, its artifact and all files below ``root``."""
    pipeline(Case(stable_diffusion("StableDiffusionPipeline", SMALL))).save_pretrained(root / "model")
    _write_texts(root)
    _write_loras(root)
    folders = Folders(root)
    line = folders.valid("quantize", without=("-o",))
    made = CliRunner().invoke(app, [*line, "-o", folders.path("artifact")], catch_exceptions=False)
    if made.exit_code:
        raise RuntimeError(made.output)
    return folders


def _write_texts(root: Path) -> None:
    texts = {
        "prompts.txt": "\n".join(PROMPTS),
        "others.txt": "a white horse\na black sheep\n",
        "empty.txt": "",
        "blank.txt": " \n\t\n\n",
        "nul.txt": "a cat\0\nmore\n",
        "long.txt": "x" * 100_000,
        "deep.json": "[" * 100_000,
        "number.json": "9" * 5000,
        "infinite.json": '{"annotations": [{"image_id": Infinity, "id": 1, "caption": "x"}]}',
        "columns.csv": "id,name\n1,x\n",
        "nul.csv": "prompt\na\0b\n",
        "no.parquet": "PAR1 and no more",
        "unknown.toml": "no_such_key = 1\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    (root / "binary.txt").write_bytes(bytes(range(256)))
    (root / "empty-folder").mkdir()
    (root / "text-images").mkdir()
    (root / "text-images" / "a.png").write_text("no image", encoding="utf-8")
    for name in ("pipe", "pipe.svg"):
        os.mkfifo(root / name)
    (root / "empty-folder.svg").mkdir()
    (root / "link").symlink_to(root / "no-such")
    (root / "loop").symlink_to(root / "loop")


def _write_loras(root: Path) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
    fitting = {down: torch.ones(2, 8), up: torch.ones(8, 2)}
    loras = {
        "foreign": {
            "unet.no_such.to_q.lora_A.weight": torch.ones(2, 8),
            "unet.no_such.to_q.lora_B.weight": torch.ones(8, 2),
        },
        "shapes": {down: torch.ones(2, 5), up: torch.ones(7, 2)},
        "ranks": {down: torch.ones(2, 8), up: torch.ones(8, 3)},
        "alpha": {**fitting, f"{layer}.alpha": torch.ones(2)},
        "loha": {**fitting, f"{layer}.hada_w1_a": torch.ones(2, 2)},
        "integers": {down: torch.ones(2, 8, dtype=torch.int8), up: torch.ones(8, 2, dtype=torch.int8)},
        "nan": {**fitting, up: torch.full((8, 2), torch.nan)},
        "empty": {},
    }
    for name, tensors in loras.items():
        save_file(tensors, root / f"{name}.safetensors")
    (root / "text.safetensors").write_text(json.dumps({"a": 1}), encoding="utf-8")
