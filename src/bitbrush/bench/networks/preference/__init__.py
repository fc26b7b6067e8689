"""Networks trained on what people prefer or perceive, as metrics of `bench`: a file each."""
