"""The served model ``preprocess``."""
