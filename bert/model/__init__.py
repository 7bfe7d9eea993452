"""The network, readable next to the papers; knows no family, task or file.

Letters used for shapes, everywhere: B batch, S padded length, T packed tokens, H hidden
size, N heads, D head size, V vocabulary, L labels.
"""
