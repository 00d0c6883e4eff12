"""The face for notebooks and scripts: a workspace with the stages as methods, and a model that answers.

Everything here is the command line's, without its effects on the process.
"""
