"""One folder per experiment: its measurement, results file and page."""
