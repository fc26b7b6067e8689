"""The digest knows a pipeline by its weights alone."""

import copy

import torch

import bitbrush
from bitbrush.sources.identity import model_digest
from bitbrush.sources.schedulers import with_scheduler


def test_the_same_weights_have_the_same_digest_whatever_the_scheduler() -> None:
    pipe = bitbrush.load_full_precision("emoji-sd")
    assert model_digest(pipe) == model_digest(bitbrush.load_full_precision("emoji-sd"))
    assert model_digest(with_scheduler(pipe, "ddim")) == model_digest(pipe)


def test_one_changed_weight_changes_it() -> None:
    pipe = bitbrush.load_full_precision("emoji-sd")
    before = model_digest(pipe)
    pipe.unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 1e-6
    assert model_digest(pipe) != before
