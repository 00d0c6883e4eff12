"""From image files to batches of training views."""
