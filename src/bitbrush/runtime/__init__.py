"""Executors of quantized layers behind one interface."""
