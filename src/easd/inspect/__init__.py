"""Views of a trace for people; none of them opens a model or imports torch."""
