"""Smaller and faster models out of trained ones, each judged beside its original."""
