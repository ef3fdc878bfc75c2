"""Windows: rules, and the attention inside them."""
