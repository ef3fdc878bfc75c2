"""The phases: one file each, one function each, which writes a folder of a run."""
