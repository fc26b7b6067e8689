"""Networks that metrics look through, one per file: each has a name, which its figures carry, and a digest."""

BUNDLED_CLIP, USUAL_CLIP = "emoji-clip", "openai/clip-vit-large-patch14"
"""Which CLIP is used where none is named: for a bundled model, and for any other."""
