"""What a notebook or a script uses: a workspace with the stages as methods, and a model that answers.

Everything here is the command line's, without its effects on the process.
"""
