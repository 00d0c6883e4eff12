"""What is made of the figures: tables, texts, the model card, comparisons."""
