"""Labelled, filtered and exactly mixed synthetic data for hand pose estimators."""

__version__ = "0.1.0"
