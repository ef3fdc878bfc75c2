"""Attention Bias Calibration: transformers that learn arithmetic on short numbers and do it on long ones."""
