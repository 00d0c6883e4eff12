"""The benchmark of teacher against student."""
