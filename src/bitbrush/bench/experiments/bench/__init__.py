"""QDiffBench: candidates against full precision (``bitbrush bench``)."""
