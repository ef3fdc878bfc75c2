"""Calibration: from attention maps to windows."""

from abc_toolkit.calibration.capture import AttentionMaps
from abc_toolkit.calibration.lines import Places
from abc_toolkit.calibration.method import CalibrationMethod
from abc_toolkit.calibration.paper import Paper

__all__ = ["AttentionMaps", "CalibrationMethod", "Paper", "Places"]
