"""Cell embeddings of any network: what follows the feature layer is recorded, measured once, and decomposed."""
