"""Cost of running an artifact by other schedulers and step counts than the calibrated ones: one cell per plan."""
