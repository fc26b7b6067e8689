"""Explanations of prompt sets, where their short names stand on a page."""

_STYLES = {
    "coco": "sentences in the style of COCO's captions",
    "sdp": "lists of keywords in the style of Stable Diffusion prompts",
}
_DOMAINS = {
    "calibration style": "calibration used other prompts of this style",
    "unseen style": "calibration saw no prompt of this style",
}


def explained(name: str, domain: str = "") -> str:
    """Returns what the prompts of a set are, as far as that is known.

    Args:
        name: Name of the set; those of the bundled models are known.
        domain: Style relative to the calibration's, as ``results.json`` has it.
    """
    parts = [_STYLES.get(name, ""), _DOMAINS.get(domain, domain)]
    return "; ".join(part for part in parts if part)


def counted(name: str, prompts: int) -> str:
    """Returns the number of prompts of a set and what they are: `32 of sdp: lists of keywords ...`."""
    style = explained(name)
    return f"{prompts} of {name}{f': {style}' if style else ''}"
