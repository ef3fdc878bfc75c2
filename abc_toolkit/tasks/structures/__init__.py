"""Tasks on structures, such as trees."""
