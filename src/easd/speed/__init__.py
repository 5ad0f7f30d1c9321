"""How fast a pair decodes, measured and forecast."""
