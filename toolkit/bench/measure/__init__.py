"""What is measured: quality, speed, memory and cost."""
