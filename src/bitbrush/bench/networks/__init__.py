"""Networks of the metrics, one per file; figures carry the network's name, and results its digest."""

BUNDLED_CLIP, USUAL_CLIP = "emoji-clip", "openai/clip-vit-large-patch14"
"""Default CLIP models: of a bundled model, and of any other."""
