"""Tasks on text that a user names: nothing is fetched, and nothing in a text is executed."""
