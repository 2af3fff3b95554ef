"""Measurements of tune_lung itself; no part of the installed package."""
