"""Figures: their definitions, their intervals, and how they are printed."""
