"""Spelling of characters that an output stream cannot encode, in place of an error."""

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
    """Makes standard output and error spell characters in ASCII that their encoding lacks."""
    codecs.register_error(HANDLER, _spelled_run)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)


def visible(text: str) -> str:
    """Escapes control characters, which a file of others might hold to steer a terminal."""
    return "".join(repr(one)[1:-1] if unicodedata.category(one) == "Cc" and one != "\n" else one for one in text)


def spelled(text: str, encoding: str) -> str:
    """Spells the text as :func:`spell_what_streams_lack` does for an encoding; tables are laid out with the result."""
    codecs.register_error(HANDLER, _spelled_run)
    return text.encode(encoding, HANDLER).decode(encoding)


def _spelled_run(error: UnicodeError) -> tuple[str, int]:
    """Spells a run of characters that an encoding lacks; an error handler of :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    run = error.object[error.start : error.end]
    power = "^" if run[0] in _SUPERSCRIPTS else ""
    return power + "".join(map(_spelled_character, run)), error.end


def _spelled_character(character: str) -> str:
    """Returns the spelling of a character, its letter without accents, or a question mark."""
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return _SPELLINGS.get(character) or plain or "?"
