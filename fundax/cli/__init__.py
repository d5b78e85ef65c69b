"""The command line: verbs of launch.py, their arguments, and cross-validation.

verbs      verbs that take no config: predict, export, embed, explain, data, ...
options    arguments of train, eval, fit and compile, in addition to those of a config
folds      train --folds and fit: cross-validation, and the better of two recipes
"""
