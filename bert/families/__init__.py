"""One data file a family: weight names, configuration names, sizes and heads.

The file name is the registration: a family exists because its file does.
"""
