"""NME: person-specific parameters anywhere in a network, and in the transition matrix of a CRF."""
