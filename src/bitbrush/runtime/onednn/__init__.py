"""The CPU runtime of integers: oneDNN's u8 x s8 products, as torch brings them along."""
