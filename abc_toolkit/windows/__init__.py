"""Windows: the rules that say which keys stay open, what they lower to, and a position method inside a window."""

from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.lowering import dense_bias, matrices, open_keys, site_positions
from abc_toolkit.windows.rules import Condition, Rule, Window, WindowError

__all__ = [
    "Condition",
    "Rule",
    "Window",
    "WindowError",
    "Windowed",
    "dense_bias",
    "matrices",
    "open_keys",
    "site_positions",
]
