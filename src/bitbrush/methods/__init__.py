"""The published methods, each a recipe composed of the stages of the rooms below."""

from bitbrush.methods import best, dynamic, one_shot, paper, pcr, ptq4dm, qdiffusion, rtn, smoothquant
from bitbrush.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        pcr.PCR,
        best.BEST,
        one_shot.ONE_SHOT,
        ptq4dm.PTQ4DM,
        qdiffusion.QDIFFUSION,
        smoothquant.SMOOTHQUANT,
        dynamic.DYNAMIC,
        rtn.RTN,
        paper.PAPER,
    )
}
"""By the name that a recipe's ``method`` key uses."""
DEFAULT_METHOD = best.BEST.name
"""Of ``bitbrush quantize``: the best found; docs/results.md tells what it is worth, and docs/methods.md its cost."""
