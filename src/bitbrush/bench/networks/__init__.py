"""Networks that metrics look through, one per file: each has a name, which its figures carry, and a digest."""
