"""The colours of all pictures: one for each role, so that a reader learns them once."""

COLOURS = {"teacher": "#4c6a92", "student": "#d1652c", "control": "#7a8b58"}
INK, FAINT = "#2b2b2b", "#d9d9d9"
