"""Scores with their uncertainty, and pictures of them: arrays in, numbers or PNG files out."""
