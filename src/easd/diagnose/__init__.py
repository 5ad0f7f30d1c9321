"""What both models make of reference text, and which rule that speaks for."""
