"""The benchmark of teacher and student."""
