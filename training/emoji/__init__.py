"""Training recipe of `emoji-sd` and `emoji-clip`, the models bundled in `bitbrush.zoo`; see README.md."""
