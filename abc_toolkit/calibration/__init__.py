"""From attention maps to windows."""

from abc_toolkit.calibration.lines import Places
from abc_toolkit.calibration.method import CalibrationMethod
from abc_toolkit.calibration.paper import Paper
from abc_toolkit.calibration.window import Condition, Rule, Window, Windowed

__all__ = ["CalibrationMethod", "Condition", "Paper", "Places", "Rule", "Window", "Windowed"]
