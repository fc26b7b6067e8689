"""From a pipeline, prompts and a method to a quantized pipeline; resuming and dry runs."""
