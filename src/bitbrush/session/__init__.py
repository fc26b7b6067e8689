"""State of a long run: processes, finished pieces of work, offloaded tensors, progress and costs."""
