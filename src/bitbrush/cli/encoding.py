"""Streams that cannot encode every character: what they lack is spelled otherwise, and nothing ends."""

import codecs
import io
import sys
import unicodedata

HANDLER = "bitbrush-spelled"

_SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
_SPELLINGS = {
    **dict(zip(_SUPERSCRIPTS, "-0123456789", strict=True)),
    "−": "-",
    "–": "-",
    "×": "x",
    "·": "-",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "↑": "^",
    "↓": "v",
    "━": "=",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "…": "...",
    "ß": "ss",
    "æ": "ae",
    "ø": "o",
}


def spell_what_streams_lack() -> None:
    """Lets standard output and error spell in ASCII whatever their encoding lacks, instead of raising an error."""
    codecs.register_error(HANDLER, _spelled_run)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def spelled(text: str, encoding: str) -> str:
    """The text as :func:`spell_what_streams_lack` has it written in this encoding: tables are laid out with it."""
    codecs.register_error(HANDLER, _spelled_run)
    return text.encode(encoding, HANDLER).decode(encoding)


def _spelled_run(error: UnicodeError) -> tuple[str, int]:
    """An error handler of :mod:`codecs`, for a run of characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    run = error.object[error.start : error.end]
    power = "^" if run[0] in _SUPERSCRIPTS else ""
    return power + "".join(map(_spelled_character, run)), error.end


def _spelled_character(character: str) -> str:
    """Its spelling, the letter without its accents, or a question mark."""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _SPELLINGS.get(character) or plain or "?"
