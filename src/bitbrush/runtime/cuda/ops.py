"""All kernels as torch operators; the runtime imports this module on first use, and only this one imports Triton."""

from bitbrush.runtime.cuda.fused_launches import (
    geglu_bytes,
    group_norm_affine,
    layer_norm_bytes,
    quantize_image,
)
from bitbrush.runtime.cuda.product_ops import Geometry, gated_product, integer_product

__all__ = [
    "Geometry",
    "gated_product",
    "geglu_bytes",
    "group_norm_affine",
    "integer_product",
    "layer_norm_bytes",
    "quantize_image",
]
