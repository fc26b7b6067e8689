"""One metric per file: pure functions over numpy arrays that return one float64 value per pair."""
