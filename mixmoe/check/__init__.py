"""What is asked of a fit before it is believed: classification, influence, residuals, and what follows from experts."""
