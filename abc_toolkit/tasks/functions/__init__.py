"""Functions that are learned in context, from examples in the prompt."""
