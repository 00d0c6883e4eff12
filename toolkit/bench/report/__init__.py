"""What people read of a report: tables, sentences, the model card, comparisons."""
