"""A denoiser of SDXL's architecture that starts from a trained one of Stable Diffusion's.

Source: Chen et al. 2016, "Net2Net: Accelerating Learning via Knowledge Transfer": what is added computes nothing at
first. Deviation: the text conditions are others, so the projections that read them are fitted by least squares, and the
grown network starts near the old function instead of at it.
"""

from __future__ import annotations

import re

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

_TEXT_PROJECTIONS = ("attn2.to_k.weight", "attn2.to_v.weight")
_SILENT = re.compile(r"(attn1\.to_out\.0|attn2\.to_out\.0|ff\.net\.2|add_embedding\.linear_2)\.(weight|bias)$")
"""The last layers of what is added: with zeros there it adds nothing."""


@torch.no_grad()
def grow_(model: UNet2DConditionModel, trained: UNet2DConditionModel, text_map: Tensor) -> None:
    """Fill `model` with the weights of `trained` and silence what `trained` does not have.

    `text_map`: `(new text width, old text width)`, takes the new text embeddings to the old.
    Raises ValueError where a weight has another shape in the two.
    """
    old = trained.state_dict()
    for name, value in model.state_dict().items():
        if name in old:
            wanted = old[name] @ text_map.T if name.endswith(_TEXT_PROJECTIONS) else old[name]
            if wanted.numel() != value.numel():
                raise ValueError(f"{name} is {tuple(wanted.shape)} in the trained denoiser, {tuple(value.shape)} here")
            value.copy_(wanted.view_as(value))  # 1x1 convolutions became linear layers
        elif _SILENT.search(name):
            value.zero_()


def fit_text_map(new: Tensor, old: Tensor) -> Tensor:
    """The least-squares solution M of new @ M = old for embeddings `(tokens, width)`: `(new width, old width)`."""
    solution: Tensor = torch.linalg.lstsq(new.double(), old.double()).solution.to(new.dtype)
    return solution
