"""Sample formulas in the project's own synthetic handwriting, with their LaTeX."""
