"""What other schedulers and step counts than the calibrated ones cost: one cell per plan."""
