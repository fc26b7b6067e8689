"""What a long run holds on to: processes, finished pieces, offloaded tensors, progress and costs."""
