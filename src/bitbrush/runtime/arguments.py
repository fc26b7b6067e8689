"""What of a denoiser's arguments must not be rounded."""

EXACT_ARGUMENTS = ("timestep", "time_ids", "img_ids", "txt_ids", "resolution", "aspect_ratio")
"""Numbers that a denoiser embeds: times, sizes and places, which bfloat16 would round to a neighbour."""
