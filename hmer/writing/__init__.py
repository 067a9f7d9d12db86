"""Synthetic handwriting: a stroke alphabet of the project's own and a layout of formulas."""
