"""Models: backbones, attention, decoding."""
