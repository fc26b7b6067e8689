"""Runtimes that execute quantized layers behind one interface."""
