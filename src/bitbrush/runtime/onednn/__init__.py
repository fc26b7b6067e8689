"""CPU runtime in integers, by the u8 x s8 products of the oneDNN that ships with torch."""
