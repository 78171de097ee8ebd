"""Metrics, evaluation runs and their reports."""
