"""The torch-free core: ink and images in, LaTeX out; shared by every other package."""

__version__ = "0.1.0"
