"""Training: the teacher, the student and its control."""
