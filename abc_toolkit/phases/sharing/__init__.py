"""Models outside their runs: exported folders, their cards, and loading them."""
