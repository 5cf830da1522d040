"""Builds in the formats that other estimators read as they are."""
