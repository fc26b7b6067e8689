"""The stages that methods are made of, a file each."""
