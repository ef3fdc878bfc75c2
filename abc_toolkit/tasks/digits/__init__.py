"""Tasks on digit strings."""
