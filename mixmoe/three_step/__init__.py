"""What follows from, or leads to, an expert, corrected for doubtful memberships."""
