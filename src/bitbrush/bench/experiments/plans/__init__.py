"""An artifact under other sampling plans than its own (``bitbrush plans``)."""
