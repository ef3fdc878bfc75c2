"""From attention maps to windows."""

from abc_toolkit.calibration.lines import Places
from abc_toolkit.calibration.method import CalibrationMethod
from abc_toolkit.calibration.paper import Paper
from abc_toolkit.windows.attention import Windowed
from abc_toolkit.windows.rules import Condition, Rule, Window

__all__ = ["CalibrationMethod", "Condition", "Paper", "Places", "Rule", "Window", "Windowed"]
