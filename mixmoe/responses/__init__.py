"""Response distributions: densities, links and their derivatives."""
