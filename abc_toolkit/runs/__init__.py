"""Runs on disk: the folder, its files, and values as plain data."""
