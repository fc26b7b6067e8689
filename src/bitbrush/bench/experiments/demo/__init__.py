"""The bundled pipeline quantized, generated and shown (``bitbrush demo``)."""
