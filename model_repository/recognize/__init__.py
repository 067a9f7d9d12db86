"""The ensemble ``preprocess -> encoder -> decode``.

It has no code: its ``config.pbtxt`` (``export.config``) names the three models and ties
their tensors together.
"""
