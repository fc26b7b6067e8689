"""Full-precision pipelines and their inputs: models, LoRA, schedulers, prompts and images."""
