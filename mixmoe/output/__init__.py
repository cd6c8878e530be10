"""Tables and curves as records, and the writers that print or draw them."""
