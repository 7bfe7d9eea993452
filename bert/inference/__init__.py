"""Encoders prepared for answering: weights converted once, products fused, int8."""
