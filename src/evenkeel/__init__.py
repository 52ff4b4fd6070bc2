"""Normalization layers for Keras 3."""
