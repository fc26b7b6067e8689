"""The ablation: recipes by bit settings under one protocol, resumable, shared by processes, told on one page."""
