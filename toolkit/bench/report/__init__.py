"""The parts of a report that people read: tables, sentences, the model card, comparisons."""
