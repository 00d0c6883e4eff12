"""What this machine can really do, and how to mend what is wrong."""
