"""Tasks on structures other than digit strings."""
